// The operations between the products: norms with residual sums, rotary positions, attention.
// Plain loops that compilers vectorize; computed in float32, with inputs and outputs of
// a type T: bfloat16, or float32.
#include "common.h"

#include <algorithm>

namespace {

constexpr int64_t WORTH_THREADS = 16;  // rows below which a second thread costs more than it saves

// 1 / rms of a row, with what is put under the root against division by zero.
inline float inverse_rms(const float* x, int width, float eps) {
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int i = 0; i < width; i++) squares += x[i] * x[i];
    return 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
}

// row * (1 + weight) / rms, in place.
template <typename T>
inline void rms_normalize(float* row, const T* weight, int width, float eps) {
    const float scale = inverse_rms(row, width, eps);
#pragma omp simd
    for (int i = 0; i < width; i++) row[i] *= scale * (1.0f + widen(weight[i]));
}

// x[M, D] += norm(delta) (or delta itself without `delta_weight`; nothing without `delta`), then
// out[M, D] = norm(x), without `out_weight` not at all. Rounded to bfloat16 where torch rounds.
template <typename T>
void add_rms_norm(void* x, const void* delta, const void* delta_weight, const void* out_weight,
                  void* out, int64_t rows, int width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows >= WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) {
        T* residual = static_cast<T*>(x) + r * width;
        float* row = scratch<float>(0, 2 * width);
        widen_row(residual, width, row);
        if (delta != nullptr) {
            float* add = row + width;
            widen_row(static_cast<const T*>(delta) + r * width, width, add);
            if (delta_weight != nullptr) {
                rms_normalize(add, static_cast<const T*>(delta_weight), width, eps);
#pragma omp simd
                for (int i = 0; i < width; i++) add[i] = widen(round_to<T>(add[i]));
            }
#pragma omp simd
            for (int i = 0; i < width; i++) row[i] += add[i];
            narrow_row(row, width, residual);
            widen_row(residual, width, row);
        }
        if (out_weight != nullptr) {
            rms_normalize(row, static_cast<const T*>(out_weight), width, eps);
            narrow_row(row, width, static_cast<T*>(out) + r * width);
        }
    }
}

// The same with LayerNorm: x += delta, then out = norm(x) * weight + bias.
template <typename T>
void add_layer_norm(void* x, const void* delta, const void* weight, const void* bias, void* out,
                    int64_t rows, int width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows >= WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) {
        T* residual = static_cast<T*>(x) + r * width;
        float* row = scratch<float>(0, 2 * width);
        widen_row(residual, width, row);
        if (delta != nullptr) {
            const T* add = static_cast<const T*>(delta) + r * width;
#pragma omp simd
            for (int i = 0; i < width; i++) row[i] += widen(add[i]);
            narrow_row(row, width, residual);
            widen_row(residual, width, row);
        }
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < width; i++) sum += row[i];
        const float mean = sum / static_cast<float>(width);
#pragma omp simd
        for (int i = 0; i < width; i++) row[i] -= mean;
        const float scale = inverse_rms(row, width, eps);
        const T* w = static_cast<const T*>(weight);
        const T* b = static_cast<const T*>(bias);
#pragma omp simd
        for (int i = 0; i < width; i++) row[i] = row[i] * scale * widen(w[i]) + widen(b[i]);
        narrow_row(row, width, static_cast<T*>(out) + r * width);
    }
}

// in[B, T, stride], its first N * H features -> out[B, N, T, H]: turned by cos, sin float[B, T, H/2]
// (not without them) and scaled, rounded to bfloat16 where torch rounds.
template <typename T>
void split_heads(const void* in, int64_t in_stride, const float* cos, const float* sin, float scale,
                 void* out, int64_t batch, int64_t tokens, int heads, int head_dim, int threads) {
    const int half = head_dim / 2;
#pragma omp parallel for num_threads(threads) if (batch * tokens >= WORTH_THREADS)
    for (int64_t place = 0; place < batch * tokens; place++) {
        const int64_t b = place / tokens, t = place % tokens;
        for (int n = 0; n < heads; n++) {
            const T* x = static_cast<const T*>(in) + place * in_stride + n * head_dim;
            T* to = static_cast<T*>(out) + ((b * heads + n) * tokens + t) * head_dim;
            if (cos == nullptr) {
                std::memcpy(to, x, head_dim * sizeof(T));
                continue;
            }
            const float* c = cos + place * half;
            const float* s = sin + place * half;
#pragma omp simd
            for (int i = 0; i < half; i++) {
                const float first = widen(x[i]), second = widen(x[half + i]);
                to[i] = round_to<T>(scale * widen(round_to<T>(first * c[i] - second * s[i])));
                to[half + i] = round_to<T>(scale * widen(round_to<T>(second * c[i] + first * s[i])));
            }
        }
    }
}

// A few queries [B, N, T, H] against keys and values [B, K, S, H] of a cache (strides between
// batch rows and heads), bias float[B, T, S] or none -> out[B, T, N * H].
template <typename T>
void attend(const void* queries, const void* keys, const void* values, int64_t batch_stride,
            int64_t head_stride, const float* bias, float scale, float cap, void* out,
            int64_t batch, int heads, int kv_heads, int64_t tokens, int64_t count, int head_dim,
            int threads) {
    const int group = heads / kv_heads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t job = 0; job < batch * heads * tokens; job++) {
        // Neighbors share keys: the heads of a group, then the tokens.
        const int64_t b = job / (heads * tokens), t = job / group % tokens;
        const int64_t kv = job / (group * tokens) % kv_heads, n = kv * group + job % group;
        const T* key = static_cast<const T*>(keys) + b * batch_stride + kv * head_stride;
        const T* value = static_cast<const T*>(values) + b * batch_stride + kv * head_stride;
        float* logits = scratch<float>(0, count + 2 * head_dim);
        float* query = logits + count;
        float* mixed = query + head_dim;
        widen_row(static_cast<const T*>(queries) + ((b * heads + n) * tokens + t) * head_dim,
                  head_dim, query);
        for (int64_t s = 0; s < count; s++) {
            const T* k = key + s * head_dim;
            float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
            for (int i = 0; i < head_dim; i++) dot += query[i] * widen(k[i]);
            logits[s] = dot;
        }
        soften(logits, scale, bias == nullptr ? nullptr : bias + (b * tokens + t) * count, count, cap);
        std::memset(mixed, 0, head_dim * sizeof(float));
        for (int64_t s = 0; s < count; s++) {
            const T* v = value + s * head_dim;
            const float weight = logits[s];
            if (weight == 0.0f) continue;  // masked: the value must not matter
#pragma omp simd
            for (int i = 0; i < head_dim; i++) mixed[i] += weight * widen(v[i]);
        }
        narrow_row(mixed, head_dim,
                   static_cast<T*>(out) + ((b * tokens + t) * heads + n) * head_dim);
    }
}

}  // namespace

extern "C" void paligemma_add_rms_norm(void* x, const void* delta, const void* delta_weight,
                                       const void* out_weight, void* out, int64_t rows, int width,
                                       float eps, int is_float32, int threads) {
    auto run = is_float32 ? add_rms_norm<float> : add_rms_norm<bf16>;
    run(x, delta, delta_weight, out_weight, out, rows, width, eps, threads);
}

extern "C" void paligemma_add_layer_norm(void* x, const void* delta, const void* weight,
                                         const void* bias, void* out, int64_t rows, int width,
                                         float eps, int is_float32, int threads) {
    auto run = is_float32 ? add_layer_norm<float> : add_layer_norm<bf16>;
    run(x, delta, weight, bias, out, rows, width, eps, threads);
}

extern "C" void paligemma_split_heads(const void* in, int64_t in_stride, const float* cos,
                                      const float* sin, float scale, void* out, int64_t batch,
                                      int64_t tokens, int heads, int head_dim, int is_float32,
                                      int threads) {
    auto run = is_float32 ? split_heads<float> : split_heads<bf16>;
    run(in, in_stride, cos, sin, scale, out, batch, tokens, heads, head_dim, threads);
}

extern "C" void paligemma_attend(const void* queries, const void* keys, const void* values,
                                 int64_t batch_stride, int64_t head_stride, const float* bias,
                                 float scale, float cap, void* out, int64_t batch, int heads,
                                 int kv_heads, int64_t tokens, int64_t count, int head_dim,
                                 int is_float32, int threads) {
    auto run = is_float32 ? attend<float> : attend<bf16>;
    run(queries, keys, values, batch_stride, head_stride, bias, scale, cap, out, batch, heads, kv_heads,
        tokens, count, head_dim, threads);
}
