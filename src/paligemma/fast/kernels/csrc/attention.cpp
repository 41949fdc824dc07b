// Attention of many queries: a whole prefix, or the patches of an image. 32 queries at a time meet all
// keys, so that their logits never leave the second-level cache, whatever the number of keys. Tiles or
// vectors multiply bfloat16, in pairs; vectors multiply float32, and bfloat16 as float32 where the
// processor has no products of pairs.
#include "tiles.h"

namespace {

constexpr int QUERIES = 2 * LANES;            // at once
constexpr int PANEL_SUMS = QUERIES * LANES;   // sums of these queries and a panel: [32][16]

#ifdef PG_AVX512

// What is packed the same way for tiles and for vectors: pairs of neighbors side by side.
struct PairPacking {
    using Packed = bf16;

    // Keys [S, H] as panels of 16 keys: [S / 16][H / 2][16][2], zeros beyond.
    static void pack_keys(const bf16* keys, int64_t count, int head_dim, int64_t k, bf16* out) {
        const int64_t panels = (count + LANES - 1) / LANES;
        std::memset(out, 0, panels * LANES * k * sizeof(bf16));
        for (int64_t s = 0; s < count; s++) {
            bf16* to = out + s / LANES * LANES * k + s % LANES * 2;
            for (int i = 0; i + 1 < head_dim; i += 2)
                std::memcpy(to + i * LANES, keys + s * head_dim + i, 2 * sizeof(bf16));
            if (head_dim % 2) to[(head_dim - 1) * LANES] = keys[s * head_dim + head_dim - 1];
        }
    }

    // Values [S, H] as panels of 16 features: [H / 16][S / 2][16][2], zeros beyond.
    static void pack_values(const bf16* values, int64_t count, int head_dim, int64_t k, bf16* out) {
        const int panels = (head_dim + LANES - 1) / LANES;
        std::memset(out, 0, panels * LANES * k * sizeof(bf16));
        for (int p = 0; p < panels; p++) {
            const int width = std::min(LANES, head_dim - p * LANES);
            for (int64_t s = 0; s < count; s++) {
                const bf16* from = values + s * head_dim + p * LANES;
                bf16* to = out + p * LANES * k + s / 2 * 2 * LANES + s % 2;
                for (int i = 0; i < width; i++) to[2 * i] = from[i];
            }
        }
    }
};

#endif

#ifdef PG_AMX

struct TileProducts : PairPacking {
    static constexpr int UNIT = TILE_K;  // what the lengths of packed rows are multiples of

    static void pack_query(const bf16* query, bool is_there, int head_dim, int64_t row, int64_t k, bf16* rows) {
        pack_row(query, is_there, head_dim, row, static_cast<int>(k), rows);
    }

    // The weights of one query and what is beyond the keys: zeros.
    static void pack_weights(const float* line, int64_t row, int64_t reach, bf16* rows) {
        bf16* to = rows + row / LANES * LANES * reach + row % LANES * TILE_K;
        for (int64_t s = 0; s < reach; s += TILE_K, to += TILE) narrow_row(line + s, TILE_K, to);
    }

    // sums[panel][32][16] = 32 packed rows times all panels.
    static void multiply_panels(const bf16* rows, int64_t k, const bf16* panels, int count, float* sums) {
        const int steps = static_cast<int>(k / TILE_K);
        for (int p = 0; p < count; p += 2) {
            auto run = p + 1 < count ? multiply_tiles<2, 2> : multiply_tiles<2, 1>;
            run(rows, LANES * k, reinterpret_cast<const uint8_t*>(panels + p * LANES * k),
                LANES * k * 2, steps, {sums + p * PANEL_SUMS, SUMS, PANEL_SUMS}, true, nullptr, 0);
        }
    }

    static void begin() { configure_tiles(); }
    static void end() { _tile_release(); }
};

#elif defined(PG_AVX512)

struct PairProducts : PairPacking {
    static constexpr int UNIT = 2;

    static void pack_query(const bf16* query, bool is_there, int head_dim, int64_t row, int64_t k, bf16* rows) {
        const int count = is_there ? head_dim : 0;
        std::memcpy(rows + row * k, query, count * sizeof(bf16));
        std::memset(rows + row * k + count, 0, (k - count) * sizeof(bf16));
    }

    static void pack_weights(const float* line, int64_t row, int64_t reach, bf16* rows) {
        narrow_row(line, static_cast<int>(reach), rows + row * reach);
    }

    // sums[panel][32][16] = 32 packed rows times all panels: a part of two panels, which stays in the
    // first-level cache, times 8 rows at a time.
    static void multiply_panels(const bf16* rows, int64_t k, const bf16* panels, int count, float* sums) {
        std::memset(sums, 0, count * PANEL_SUMS * sizeof(float));
        for (int64_t from = 0; from < k; from += PART) {
            const int64_t pairs = (std::min(k, from + PART) - from) / 2;
            for (int p = 0; p < count; p += 2) {
                const bf16* w = panels + (p * k + from) * LANES;
                auto run = p + 1 < count ? multiply<2> : multiply<1>;
                for (int r = 0; r < QUERIES; r += ROWS)
                    run(rows + r * k + from, k, w, k * LANES, pairs, sums + p * PANEL_SUMS + r * LANES);
            }
        }
    }

    static void begin() {}
    static void end() {}

private:
    static constexpr int ROWS = 8;      // whose sums stay in registers
    static constexpr int64_t PART = 256;  // values of a row, and inputs of a panel

    template <int NP>
    static void multiply(const bf16* x, int64_t x_stride, const bf16* w, int64_t w_stride, int64_t pairs,
                         float* sums) {
        __m512 kept[ROWS][NP];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
            for (int p = 0; p < NP; p++) kept[r][p] = _mm512_loadu_ps(sums + p * PANEL_SUMS + r * LANES);
        for (int64_t i = 0; i < pairs; i++, x += 2, w += 2 * LANES) {
            __m512i weights[NP];
#pragma GCC unroll 2
            for (int p = 0; p < NP; p++) weights[p] = _mm512_loadu_si512(w + p * w_stride);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                int pair;
                std::memcpy(&pair, x + r * x_stride, sizeof pair);
                const __m512i both = _mm512_set1_epi32(pair);
#pragma GCC unroll 2
                for (int p = 0; p < NP; p++)
                    kept[r][p] = _mm512_dpbf16_ps(kept[r][p], (__m512bh)both, (__m512bh)weights[p]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
            for (int p = 0; p < NP; p++) _mm512_storeu_ps(sums + p * PANEL_SUMS + r * LANES, kept[r][p]);
    }
};

#endif

#ifdef PG_AVX512
constexpr int WIDTH = 16;  // floats of a register
constexpr int ROWS = 8;    // whose sums stay in registers
#else
constexpr int WIDTH = 8;
constexpr int ROWS = 4;
#endif
typedef float Vector __attribute__((vector_size(WIDTH * sizeof(float))));
typedef float Unaligned __attribute__((vector_size(WIDTH * sizeof(float)), aligned(4), may_alias));

template <typename T>
struct VectorProducts {
    using Packed = float;
    static constexpr int UNIT = 1;

    // Keys [S, H] as panels of 16 keys: [S / 16][H][16], zeros beyond.
    static void pack_keys(const T* keys, int64_t count, int head_dim, int64_t k, float* out) {
        const int64_t panels = (count + LANES - 1) / LANES;
        std::memset(out + (panels - 1) * LANES * k, 0, LANES * k * sizeof(float));
        for (int64_t s = 0; s < count; s++) {
            float* to = out + s / LANES * LANES * k + s % LANES;
            for (int i = 0; i < head_dim; i++) to[i * LANES] = widen(keys[s * head_dim + i]);
        }
    }

    // Values [S, H] as panels of 16 features: [H / 16][S][16], zeros beyond.
    static void pack_values(const T* values, int64_t count, int head_dim, int64_t k, float* out) {
        const int panels = (head_dim + LANES - 1) / LANES;
        std::memset(out + (panels - 1) * LANES * k, 0, LANES * k * sizeof(float));
        for (int p = 0; p < panels; p++) {
            const int width = std::min(LANES, head_dim - p * LANES);
            for (int64_t s = 0; s < count; s++)
                widen_row(values + s * head_dim + p * LANES, width, out + (p * k + s) * LANES);
        }
    }

    static void pack_query(const T* query, bool is_there, int head_dim, int64_t row, int64_t k, float* rows) {
        if (is_there) widen_row(query, head_dim, rows + row * k);
        else std::memset(rows + row * k, 0, k * sizeof(float));
    }

    static void pack_weights(const float* line, int64_t row, int64_t reach, float* rows) {
        std::memcpy(rows + row * reach, line, reach * sizeof(float));
    }

    // sums[panel][32][16] = 32 packed rows times all panels.
    static void multiply_panels(const float* rows, int64_t k, const float* panels, int count, float* sums) {
        constexpr int VECTORS = LANES / WIDTH;
        for (int p = 0; p < count; p++)
            for (int first = 0; first < QUERIES; first += ROWS) {
                const float* x = rows + first * k;
                const float* w = panels + p * LANES * k;
                Vector sum[ROWS][VECTORS] = {};
                for (int64_t i = 0; i < k; i++, w += LANES) {
                    const Unaligned* weights = reinterpret_cast<const Unaligned*>(w);
                    for (int r = 0; r < ROWS; r++)
                        for (int v = 0; v < VECTORS; v++) sum[r][v] += x[r * k + i] * weights[v];
                }
                Unaligned* to = reinterpret_cast<Unaligned*>(sums + p * PANEL_SUMS + first * LANES);
                for (int r = 0; r < ROWS; r++)
                    for (int v = 0; v < VECTORS; v++) to[r * VECTORS + v] = sum[r][v];
            }
    }

    static void begin() {}
    static void end() {}
};

// queries [B, N, T, H], keys and values [B, K, S, H] (with the given strides between batch rows and
// heads), bias float[B, T, S] or none -> out[B, T, N * H].
template <typename T, typename Products>
void attend_many(const void* queries, const void* keys, const void* values, int64_t batch_stride,
                 int64_t head_stride, const float* bias, float scale, float cap, void* out,
                 int64_t batch, int heads, int kv_heads, int64_t tokens, int64_t count, int head_dim,
                 int threads) {
    using Packed = typename Products::Packed;
    constexpr int UNIT = Products::UNIT;
    const int group = heads / kv_heads;
    const int64_t k = (head_dim + UNIT - 1) / UNIT * UNIT;
    const int64_t reach = (count + UNIT - 1) / UNIT * UNIT;
    const int key_panels = static_cast<int>((count + LANES - 1) / LANES);
    const int value_panels = (head_dim + LANES - 1) / LANES;
    const int64_t blocks = (tokens + QUERIES - 1) / QUERIES;
#pragma omp parallel num_threads(threads)
    {
        Products::begin();
        Packed* packed = scratch<Packed>(0, key_panels * LANES * k + value_panels * LANES * reach);
        Packed* packed_values = packed + key_panels * LANES * k;
        Packed* rows = scratch<Packed>(1, QUERIES * (k + reach));
        Packed* weights = rows + QUERIES * k;
        const int64_t most_panels = std::max(key_panels, value_panels);
        float* sums = scratch<float>(2, most_panels * PANEL_SUMS + std::max<int64_t>(reach, key_panels * LANES));
        float* line = sums + most_panels * PANEL_SUMS;
        int64_t packed_place = -1;
        // The query heads of a key/value head follow each other, so a thread packs few of those.
#pragma omp for schedule(static)
        for (int64_t job = 0; job < batch * heads * blocks; job++) {
            const int64_t b = job / (heads * blocks), n = job / blocks % heads;
            const int64_t first = job % blocks * QUERIES;
            const int64_t place = b * batch_stride + n / group * head_stride;
            if (place != packed_place) {
                Products::pack_keys(static_cast<const T*>(keys) + place, count, head_dim, k, packed);
                Products::pack_values(static_cast<const T*>(values) + place, count, head_dim, reach, packed_values);
                packed_place = place;
            }
            const int64_t there = std::min<int64_t>(QUERIES, tokens - first);
            const T* from = static_cast<const T*>(queries) + ((b * heads + n) * tokens + first) * head_dim;
            for (int64_t r = 0; r < QUERIES; r++)
                Products::pack_query(from + r * head_dim, r < there, head_dim, r, k, rows);
            Products::multiply_panels(rows, k, packed, key_panels, sums);
            for (int64_t r = 0; r < QUERIES; r++) {
                for (int p = 0; p < key_panels; p++)
                    std::memcpy(line + p * LANES, sums + p * PANEL_SUMS + r * LANES, LANES * sizeof(float));
                const float* seen = bias == nullptr ? nullptr : bias + (b * tokens + first + r) * count;
                if (r < there) soften(line, scale, seen, count, cap);
                for (int64_t s = count; s < reach; s++) line[s] = 0.0f;
                Products::pack_weights(line, r, reach, weights);
            }
            Products::multiply_panels(weights, reach, packed_values, value_panels, sums);
            for (int64_t r = 0; r < there; r++) {
                T* to = static_cast<T*>(out) + ((b * tokens + first + r) * heads + n) * head_dim;
                for (int p = 0; p < value_panels; p++)
                    narrow_row(sums + p * PANEL_SUMS + r * LANES,
                               std::min(LANES, head_dim - p * LANES), to + p * LANES);
            }
        }
        Products::end();
    }
}

}  // namespace

extern "C" void paligemma_attend_many(const void* queries, const void* keys, const void* values,
                                      int64_t batch_stride, int64_t head_stride, const float* bias,
                                      float scale, float cap, void* out, int64_t batch, int heads,
                                      int kv_heads, int64_t tokens, int64_t count, int head_dim,
                                      int is_float32, int threads) {
#if defined(PG_AMX)
    using Bfloat16Products = TileProducts;
#elif defined(PG_AVX512)
    using Bfloat16Products = PairProducts;
#else
    using Bfloat16Products = VectorProducts<bf16>;
#endif
    auto run = is_float32 ? attend_many<float, VectorProducts<float>> : attend_many<bf16, Bfloat16Products>;
    run(queries, keys, values, batch_stride, head_stride, bias, scale, cap, out, batch, heads, kv_heads,
        tokens, count, head_dim, threads);
}
