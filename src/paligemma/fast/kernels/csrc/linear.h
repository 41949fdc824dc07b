// A linear layer on packed weights, and what becomes of its sums.
#pragma once

#include "common.h"

#include <algorithm>

namespace {

enum Epilogue { NONE = 0, GELU = 1, GEGLU = 2 };

struct Linear {
    int format;
    const uint8_t* values;
    const bf16* scales;  // [panels][k / group][16]
    int group;
    int panels;
    int k;  // padded inputs: a multiple of 32 and of the group
    const float* bias;
    int epilogue;
    void* out;
    int64_t out_stride;
    int out_is_float;

    int input_bytes() const { return INPUT_BYTES[format]; }
    bool is_quantized() const { return format == INT8 || format == INT4; }
    int64_t panel_bytes() const { return static_cast<int64_t>(k) * input_bytes(); }
    const uint8_t* panel(int p) const { return values + p * panel_bytes(); }
    const bf16* panel_scales(int p) const {
        return scales + static_cast<int64_t>(p) * (k / group) * LANES;
    }
};

template <typename T>
struct Rows {
    const T* x;
    int64_t stride;
    int64_t count;
    int inputs;
};

constexpr int MANY_PANELS = 4;    // that a thread works on at once: as many streams as memory likes
constexpr int CHUNK_PANELS = 16;  // whose sums wait for the next part of many rows

// The panels of this thread: whole blocks, so that each thread reads one stretch of memory.
inline void share(int panels, int* first, int* end) {
    const int threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const int blocks = (panels + MANY_PANELS - 1) / MANY_PANELS;
    *first = std::min(panels, blocks * thread / threads * MANY_PANELS);
    *end = std::min(panels, blocks * (thread + 1) / threads * MANY_PANELS);
}

// Panels whose outputs are computed together: GEGLU needs a gate panel and the up panel after it.
constexpr int PAIR = 2;

// What happens to 16 sums of one row before they are stored. `up` is used by GEGLU only.
inline void finish(const Linear& l, int64_t row, int panel, const float* sums, const float* up) {
    alignas(64) float v[LANES];
    const int epilogue = l.epilogue;
    if (l.bias == nullptr) std::memcpy(v, sums, sizeof v);
    else {
        const float* bias = l.bias + panel * LANES;
        for (int i = 0; i < LANES; i++) v[i] = sums[i] + bias[i];
    }
    if (epilogue != NONE) {
#pragma omp simd aligned(v : 64)
        for (int i = 0; i < LANES; i++) v[i] = gelu(v[i]);
    }
    if (epilogue == GEGLU)
        for (int i = 0; i < LANES; i++) v[i] *= up[i];
    const int64_t start = row * l.out_stride + (epilogue == GEGLU ? panel / PAIR : panel) * LANES;
    if (l.out_is_float) std::memcpy(static_cast<float*>(l.out) + start, v, sizeof v);
    else narrow16(v, static_cast<bf16*>(l.out) + start);
}

// A row quantized by groups: x ~ scale * q. `start` is what the weights' offset adds, negated.
struct QuantizedRow {
    int8_t* q;       // [k]
    float* scale;    // [k / group]
    int32_t* start;  // [k / group]
};

inline void quantize_row(const bf16* x, int inputs, const Linear& l, const QuantizedRow& out) {
    const int offset = l.format == INT8 ? 128 : 8;
    for (int g = 0; g < l.k / l.group; g++) {
        const int first = g * l.group;
        const int count = std::max(0, std::min(l.group, inputs - first));
        // Without its sign a bfloat16 orders like the whole number with its bits.
        int32_t bits = 0;
#pragma omp simd reduction(max : bits)
        for (int i = 0; i < count; i++) bits = std::max(bits, x[first + i] & 0x7fff);
        const float largest = widen(static_cast<bf16>(bits));
        const float inverse = bits > 0 ? 127.0f / largest : 0.0f;
        int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < count; i++) {
            const int32_t q = static_cast<int32_t>(std::nearbyint(widen(x[first + i]) * inverse));
            out.q[first + i] = static_cast<int8_t>(q);
            sum += q;
        }
        for (int i = count; i < l.group; i++) out.q[first + i] = 0;
        // NaN and infinity must come out as NaN, not as some number.
        out.scale[g] = bits < 0x7f80 ? largest / 127.0f : NAN;
        out.start[g] = -offset * sum;
    }
}

}  // namespace
