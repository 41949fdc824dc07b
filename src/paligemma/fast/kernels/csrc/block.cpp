// All decoder blocks in one call, built from the other kernels: with many small calls, a decode step
// would spend a sixth of its time between them.
#include "common.h"

#include <vector>

extern "C" {
void paligemma_linear(int format, const void* values, const void* scales, int group, int panels,
                      int k, const float* bias, int epilogue, const void* x, int64_t x_stride,
                      int64_t rows, int inputs, void* out, int64_t out_stride, int out_is_float,
                      int threads);
void paligemma_add_rms_norm(void* x, const void* delta, const void* delta_weight,
                            const void* out_weight, void* out, int64_t rows, int width, float eps,
                            int is_float32, int threads);
void paligemma_split_heads(const void* in, int64_t in_stride, const float* cos, const float* sin,
                           float scale, void* out, int64_t batch, int64_t tokens, int heads,
                           int head_dim, int is_float32, int threads);
void paligemma_attend(const void* queries, const void* keys, const void* values,
                      int64_t batch_stride, int64_t head_stride, const float* bias, float scale,
                      float cap, void* out, int64_t batch, int heads, int kv_heads, int64_t tokens,
                      int64_t count, int head_dim, int is_float32, int threads);
void paligemma_attend_many(const void* queries, const void* keys, const void* values,
                           int64_t batch_stride, int64_t head_stride, const float* bias,
                           float scale, float cap, void* out, int64_t batch, int heads,
                           int kv_heads, int64_t tokens, int64_t count, int head_dim, int is_float32, int threads);
}

namespace {

template <typename T>
constexpr int IS_FLOAT32 = std::is_same_v<T, float>;

struct Projection {
    const void* values;
    const void* scales;
    int32_t format, group, panels, k, inputs, epilogue;

    int64_t outputs() const { return static_cast<int64_t>(panels) * LANES / (epilogue == 2 ? 2 : 1); }
    template <typename T>
    void operator()(const T* x, int64_t x_stride, int64_t rows, T* out, int threads) const {
        paligemma_linear(format, values, scales, group, panels, k, nullptr, epilogue, x, x_stride,
                         rows, inputs, out, outputs(), IS_FLOAT32<T>, threads);
    }
    // The same weight, but only its `count` panels from `first` on.
    Projection some(int32_t first, int32_t count) const {
        const int64_t inputs_before = static_cast<int64_t>(first) * k;
        Projection part = *this;
        part.values = static_cast<const uint8_t*>(values) + inputs_before * INPUT_BYTES[format];
        if (scales != nullptr)
            part.scales = static_cast<const bf16*>(scales) + inputs_before / group * LANES;
        part.panels = count;
        return part;
    }
};

struct Block {
    Projection qkv, out, gate_up, down;
    const void *pre_attention_norm, *post_attention_norm, *pre_mlp_norm, *post_mlp_norm;
    int32_t width, heads, kv_heads, head_dim, few_queries;
    float eps, query_scale, cap;
};

int64_t padded(int64_t outputs) { return (outputs + LANES - 1) / LANES * LANES; }

// [B, K, T, H] into a cache [B, K, S, H], token t of sequence b at slots[b, t].
template <typename T>
void keep(const T* from, const int64_t* slots, int64_t batch, int heads, int64_t tokens,
          int head_dim, T* memory, int64_t batch_stride, int64_t head_stride) {
    for (int64_t b = 0; b < batch; b++)
        for (int n = 0; n < heads; n++)
            for (int64_t t = 0; t < tokens; t++, from += head_dim)
                std::memcpy(memory + b * batch_stride + n * head_stride +
                                slots[b * tokens + t] * head_dim,
                            from, head_dim * sizeof(T));
}

// Row at[b] becomes row b, in the same memory or another.
template <typename T>
void pick(const T* from, const int64_t* at, int64_t batch, int64_t width, T* to) {
    for (int64_t b = 0; b < batch; b++)
        std::memmove(to + b * width, from + at[b] * width, width * sizeof(T));
}

// Sequences of the same number of tokens that follow each other.
struct Span {
    int64_t sequence, batch;  // the first, and how many
    int64_t row, tokens;      // the first one's first row, and the rows of each
};

using Spans = std::vector<Span>;

// `batch` sequences of `tokens` rows, or of lengths[b] rows, which follow each other without pads.
Spans spans_of(int64_t batch, int64_t tokens, const int64_t* lengths) {
    if (lengths == nullptr) return {{0, batch, 0, tokens}};
    Spans spans;
    int64_t row = 0;
    for (int64_t b = 0; b < batch; row += lengths[b++])
        if (!spans.empty() && spans.back().tokens == lengths[b]) spans.back().batch++;
        else spans.push_back({b, 1, row, lengths[b]});
    return spans;
}

struct Shape {
    Spans spans;
    int64_t batch, rows;                // all sequences, and all their rows
    int64_t batch_stride, head_stride;  // of the cache
    int64_t reach;                      // slots of the cache that may be seen
};

// What the queries of a block need, beside their rows.
struct Queries {
    Spans spans;
    const float *cos, *sin, *bias;
};

// The keys of all rows (at the start of `projected`) and the values after them into the cache.
template <typename T>
void keep_keys_and_values(const Block& block, const Shape& shape, const T* projected,
                          int64_t stride, const float* cos, const float* sin, const int64_t* slots,
                          T* keys, T* values, T* heads, int threads) {
    const int head_dim = block.head_dim, count = block.kv_heads;
    const int64_t half = head_dim / 2;
    const T* projected_values = projected + padded(static_cast<int64_t>(count) * head_dim);
    for (const Span& span : shape.spans) {
        auto store = [&](const T* from, const float* c, const float* s, T* memory) {
            paligemma_split_heads(from + span.row * stride, stride, c, s, 1.0f, heads, span.batch, span.tokens,
                                  count, head_dim, IS_FLOAT32<T>, threads);
            keep(heads, slots + span.row, span.batch, count, span.tokens, head_dim,
                 memory + span.sequence * shape.batch_stride, shape.batch_stride, shape.head_stride);
        };
        store(projected, cos + span.row * half, sin + span.row * half, keys);
        store(projected_values, nullptr, nullptr, values);
    }
}

// The queries at the start of `projected` -> mixed[rows, N * H].
template <typename T>
void attend(const Block& block, const Shape& shape, const T* projected, int64_t stride, const Queries& asked,
            const T* keys, const T* values, T* queries, T* mixed, int threads) {
    const int head_dim = block.head_dim;
    const int64_t half = head_dim / 2, width = static_cast<int64_t>(block.heads) * head_dim;
    for (const Span& span : asked.spans) {
        paligemma_split_heads(projected + span.row * stride, stride, asked.cos + span.row * half,
                              asked.sin + span.row * half, block.query_scale, queries, span.batch,
                              span.tokens, block.heads, head_dim, IS_FLOAT32<T>, threads);
        auto run = span.tokens > block.few_queries ? paligemma_attend_many : paligemma_attend;
        const int64_t place = span.sequence * shape.batch_stride;
        run(queries, keys + place, values + place, shape.batch_stride, shape.head_stride,
            asked.bias + span.row * shape.reach, 1.0f, block.cap, mixed + span.row * width, span.batch,
            block.heads, block.kv_heads, span.tokens, shape.reach, head_dim, IS_FLOAT32<T>, threads);
    }
}

// With `at`, everything after the keys and values is computed for row at[b] of each sequence b only,
// and the results are the first rows of x.
template <typename T>
void run(const Block& block, const Shape& shape, T* x, Queries asked, T* keys, T* values,
         const int64_t* slots, const int64_t* at, T* work, int threads) {
    const int64_t batch = shape.batch;
    int64_t rows = shape.rows;
    const int head_dim = block.head_dim;
    const int64_t queries_width = static_cast<int64_t>(block.heads) * head_dim;
    const int64_t keys_width = static_cast<int64_t>(block.kv_heads) * head_dim;

    T* normed = work;  // also the result of a branch
    T* projected = normed + rows * padded(block.width);
    T* queries = projected + rows * block.qkv.outputs();
    T* heads = queries + rows * queries_width;
    T* mixed = heads + rows * keys_width;
    T* gated = projected;  // reuses their memory

    paligemma_add_rms_norm(x, nullptr, nullptr, block.pre_attention_norm, normed, rows, block.width,
                           block.eps, IS_FLOAT32<T>, threads);
    const int32_t panels = static_cast<int32_t>(padded(queries_width) / LANES);
    Projection product = at == nullptr ? block.qkv : block.qkv.some(panels, block.qkv.panels - panels);
    product(normed, block.width, rows, projected, threads);
    keep_keys_and_values(block, shape, projected + (at == nullptr ? padded(queries_width) : 0),
                         product.outputs(), asked.cos, asked.sin, slots, keys, values, heads, threads);
    std::vector<float> picked;
    if (at != nullptr) {
        const int64_t half = head_dim / 2;
        picked.resize(batch * (2 * half + shape.reach));
        float *cos = picked.data(), *sin = cos + batch * half, *bias = sin + batch * half;
        pick(asked.cos, at, batch, half, cos);
        pick(asked.sin, at, batch, half, sin);
        pick(asked.bias, at, batch, shape.reach, bias);
        asked = {spans_of(batch, 1, nullptr), cos, sin, bias};
        pick<T>(x, at, batch, block.width, x);
        pick<T>(normed, at, batch, block.width, normed);
        rows = batch;
        product = block.qkv.some(0, panels);
        product(normed, block.width, rows, projected, threads);
    }
    attend(block, shape, projected, product.outputs(), asked, keys, values, queries, mixed, threads);
    block.out(mixed, queries_width, rows, projected, threads);
    paligemma_add_rms_norm(x, projected, block.post_attention_norm, block.pre_mlp_norm, normed,
                           rows, block.width, block.eps, IS_FLOAT32<T>, threads);
    block.gate_up(normed, block.width, rows, gated, threads);
    block.down(gated, block.gate_up.outputs(), rows, normed, threads);
    paligemma_add_rms_norm(x, normed, block.post_mlp_norm, nullptr, nullptr, rows, block.width,
                           block.eps, IS_FLOAT32<T>, threads);
}

}  // namespace

// x[R, D], the rows of B sequences, through `count` blocks, in place. Sequences have T rows, or with
// `lengths` int64[B] so many of the R rows each. `keys`, `values` and `bias` have an entry a block: two
// [B, K, S, H] of the cache and float[R, reach]; `slots` int64[R] say where new keys and values go.
// With `at` int64[B], the last block computes row at[b] of the R for each sequence only, and they
// become the first B rows of x. `work` holds what `paligemma_decoder_work` asks for a row.
extern "C" void paligemma_decoder_blocks(const void* blocks, int count, void* x, int64_t batch,
                                         int64_t tokens, const int64_t* lengths,
                                         const float* cos, const float* sin,
                                         void* const* keys, void* const* values,
                                         int64_t batch_stride, int64_t head_stride,
                                         const int64_t* slots, int64_t reach,
                                         const float* const* bias, const int64_t* at, void* work,
                                         int is_float32, int threads) {
    const Spans spans = spans_of(batch, tokens, lengths);
    const Span& last = spans.back();
    const Shape shape{spans, batch, last.row + last.batch * last.tokens, batch_stride, head_stride, reach};
    auto all = [&](auto* rows) {
        using T = std::remove_pointer_t<decltype(rows)>;
        for (int i = 0; i < count; i++)
            run(static_cast<const Block*>(blocks)[i], shape, rows, {spans, cos, sin, bias[i]},
                static_cast<T*>(keys[i]), static_cast<T*>(values[i]), slots,
                i == count - 1 ? at : nullptr, static_cast<T*>(work), threads);
    };
    if (is_float32) all(static_cast<float*>(x));
    else all(static_cast<bf16*>(x));
}

// Values of the type of x that one row needs in `work`.
extern "C" int64_t paligemma_decoder_work(const void* blocks) {
    const Block& block = *static_cast<const Block*>(blocks);
    const int64_t queries_width = static_cast<int64_t>(block.heads) * block.head_dim;
    const int64_t keys_width = static_cast<int64_t>(block.kv_heads) * block.head_dim;
    const int64_t projected = std::max(block.qkv.outputs(), padded(block.width));
    const int64_t attention = projected + 2 * queries_width + keys_width;
    return padded(block.width) + std::max(attention, block.gate_up.outputs());
}
