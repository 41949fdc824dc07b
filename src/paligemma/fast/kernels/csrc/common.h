// What the kernels share: data types, the vector exponential, threads, scratch memory.
//
// Every file here is compiled once per level (see ../build.py): amx, avx512 and generic. A level
// is chosen at run time by the processor's features; all compute the same functions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <omp.h>
#include <type_traits>

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define PG_AVX512 1
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(PG_AVX512)
#define PG_AMX 1
#endif

using bf16 = uint16_t;

constexpr int LANES = 16;  // outputs of a panel, floats of a 512-bit register

enum Format { BFLOAT16 = 0, INT8 = 1, INT4 = 2, FLOAT32 = 3 };  // of packed weights
constexpr int INPUT_BYTES[] = {2 * LANES, LANES, LANES / 2, 4 * LANES};  // of one input of a panel

static inline float widen(bf16 x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

// To the nearest, ties to even. NaN stays NaN: the bit that says so is set before the cut.
static inline bf16 narrow(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t quiet = (bits >> 16) | 0x40u;
    return static_cast<bf16>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

static inline void narrow16(const float* x, bf16* out) {
#ifdef PG_AVX512
    __m256bh half = _mm512_cvtneps_pbh(_mm512_loadu_ps(x));
    std::memcpy(out, &half, sizeof half);
#else
    for (int i = 0; i < LANES; i++) out[i] = narrow(x[i]);
#endif
}

// e^x without branches, so that loops over it become vector code; relative error below 2e-7.
// Range reduction x = n ln 2 + r, |r| <= ln 2 / 2, and the Taylor series of e^r to r^7.
static inline float exponential(float given) {
    const float x = given < -87.0f ? -87.0f : (given > 88.0f ? 88.0f : given);
    float n = std::nearbyint(x * 1.44269504f);
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9841270e-4f;
    p = p * r + 1.3888889e-3f;
    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t power = (static_cast<int32_t>(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, sizeof scale);
    return given < -87.0f ? 0.0f : p * scale;
}

static inline float soft_cap(float x, float cap) {  // cap * tanh(x / cap)
    float e = exponential(-2.0f * std::fabs(x) / cap);
    return std::copysign(cap * (1.0f - e) / (1.0f + e), x);
}

static inline float gelu(float x) {  // the tanh form: x * sigmoid(2 u)
    float u = 0.79788456f * (x + 0.044715f * x * x * x);
    return x / (1.0f + exponential(-2.0f * u));
}

// Rows are bfloat16, or float32 where `widen` and `round_to` change nothing.
static inline float widen(float x) { return x; }

template <typename T>
static inline T round_to(float x) {
    if constexpr (std::is_same_v<T, float>) return x;
    else return narrow(x);
}

// Scratch memory of one call, aligned for tiles. The thread keeps it, because page faults cost more
// than the computation.
template <typename T>
static T* scratch(int slot, size_t count) {
    struct Block {
        void* memory = nullptr;
        size_t size = 0;
        ~Block() { std::free(memory); }
    };
    thread_local Block blocks[4];
    Block& block = blocks[slot];
    size_t wanted = (count * sizeof(T) + 4095) / 4096 * 4096;
    if (block.size < wanted) {
        std::free(block.memory);
        block.size = 0;
        block.memory = std::aligned_alloc(4096, wanted);
        if (block.memory == nullptr) throw std::bad_alloc();
        block.size = wanted;
    }
    return static_cast<T*>(block.memory);
}

static inline void widen_row(const bf16* x, int width, float* out) {
#pragma omp simd
    for (int i = 0; i < width; i++) out[i] = widen(x[i]);
}

static inline void narrow_row(const float* x, int width, bf16* out) {
    int i = 0;
    for (; i + LANES <= width; i += LANES) narrow16(x + i, out + i);
    for (; i < width; i++) out[i] = narrow(x[i]);
}

static inline void widen_row(const float* x, int width, float* out) {
    std::memcpy(out, x, width * sizeof(float));
}

static inline void narrow_row(const float* x, int width, float* out) {
    std::memcpy(out, x, width * sizeof(float));
}

// Written with vectors, because GCC compiles a loop over the largest of floats one by one.
static inline float largest_of(const float* x, int64_t count) {
    typedef float Lanes __attribute__((vector_size(4 * LANES)));
    Lanes lanes = Lanes{} - INFINITY;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        Lanes next;
        std::memcpy(&next, x + i, sizeof next);
        lanes = next > lanes ? next : lanes;
    }
    float largest = -INFINITY;
    for (int lane = 0; lane < LANES; lane++) largest = std::max(largest, lanes[lane]);
    for (; i < count; i++) largest = std::max(largest, x[i]);
    return largest;
}

// Scaled, soft-capped logits + bias (if any) -> weights that sum to 1, in place.
static inline void soften(float* logits, float scale, const float* bias, int64_t count, float cap) {
    if (scale != 1.0f) {
#pragma omp simd
        for (int64_t i = 0; i < count; i++) logits[i] *= scale;
    }
    if (cap > 0.0f) {
#pragma omp simd
        for (int64_t i = 0; i < count; i++) logits[i] = soft_cap(logits[i], cap);
    }
    if (bias != nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < count; i++) logits[i] += bias[i];
    }
    const float largest = largest_of(logits, count);
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) {
        logits[i] = exponential(logits[i] - largest);
        sum += logits[i];
    }
    const float inverse = 1.0f / sum;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) logits[i] *= inverse;
}
