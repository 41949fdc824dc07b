// Attention of many queries: a whole prefix, or the patches of an image. Tiles do the products,
// and the logits of 32 queries never leave the second-level cache.
#include "tiles.h"

#ifdef PG_AMX

namespace {

// Keys [S, H] as panels of 16 keys: [S / 16][H / 2][16][2], zeros beyond.
void pack_keys(const bf16* keys, int64_t count, int head_dim, int k, bf16* out) {
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
void pack_values(const bf16* values, int64_t count, int head_dim, int64_t k, bf16* out) {
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

// sums[panel][2][16][16] = two blocks of 16 packed rows times all panels.
void multiply_panels(const bf16* rows, int64_t k, const bf16* panels, int count, float* sums) {
    const int steps = static_cast<int>(k / TILE_K);
    for (int p = 0; p < count; p += 2) {
        auto run = p + 1 < count ? multiply_tiles<2, 2> : multiply_tiles<2, 1>;
        run(rows, LANES * k, reinterpret_cast<const uint8_t*>(panels + p * LANES * k),
            LANES * k * 2, steps, sums + p * 2 * SUMS, 2 * SUMS, true, nullptr, 0);
    }
}

}  // namespace

// queries [B, N, T, H], keys and values [B, K, S, H] (with the given strides between batch rows and
// heads), bias float[B, T, S] or none -> out[B, T, N * H].
extern "C" void paligemma_attend_many(const void* queries, const void* keys, const void* values,
                                     int64_t batch_stride, int64_t head_stride, const float* bias,
                                     float scale, float cap, void* out, int64_t batch, int heads,
                                     int kv_heads, int64_t tokens, int64_t count, int head_dim,
                                     int threads) {
    const int group = heads / kv_heads;
    const int k = (head_dim + TILE_K - 1) / TILE_K * TILE_K;
    const int64_t reach = (count + TILE_K - 1) / TILE_K * TILE_K;
    const int key_panels = static_cast<int>((count + LANES - 1) / LANES);
    const int value_panels = (head_dim + LANES - 1) / LANES;
    const int64_t blocks = (tokens + 2 * LANES - 1) / (2 * LANES);
#pragma omp parallel num_threads(threads)
    {
        configure_tiles();
        bf16* packed = scratch<bf16>(0, key_panels * LANES * k + value_panels * LANES * reach);
        bf16* packed_values = packed + static_cast<int64_t>(key_panels) * LANES * k;
        bf16* rows = scratch<bf16>(1, 2 * LANES * (k + reach));
        bf16* weights = rows + 2 * LANES * k;
        float* sums = scratch<float>(2, std::max(key_panels, value_panels) * 2 * SUMS + reach);
        float* line = sums + std::max(key_panels, value_panels) * 2 * SUMS;
#pragma omp for schedule(static)
        for (int64_t job = 0; job < batch * heads; job++) {
            const int64_t b = job / heads, n = job % heads, kv = n / group;
            const int64_t place = b * batch_stride + kv * head_stride;
            pack_keys(static_cast<const bf16*>(keys) + place, count, head_dim, k, packed);
            pack_values(static_cast<const bf16*>(values) + place, count, head_dim, reach, packed_values);
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t first = block * 2 * LANES;
                const bf16* from = static_cast<const bf16*>(queries) + (job * tokens + first) * head_dim;
                for (int64_t r = 0; r < 2 * LANES; r++)
                    pack_row(from + r * head_dim, first + r < tokens, head_dim, r, k, rows);
                multiply_panels(rows, k, packed, key_panels, sums);
                for (int64_t r = 0; r < 2 * LANES; r++) {
                    const bool is_there = first + r < tokens;
                    for (int p = 0; p < key_panels; p++)
                        std::memcpy(line + p * LANES, sums + p * 2 * SUMS + r * LANES,
                                    LANES * sizeof(float));
                    const float* seen =
                        bias == nullptr ? nullptr : bias + (b * tokens + first + r) * count;
                    if (is_there) soften(line, scale, seen, count, cap);
                    for (int64_t s = 0; s < reach; s++) line[s] = s < count ? line[s] : 0.0f;
                    bf16* to = weights + r / LANES * LANES * reach + r % LANES * TILE_K;
                    for (int64_t s = 0; s < reach; s += TILE_K, to += TILE)
                        narrow_row(line + s, TILE_K, to);
                }
                multiply_panels(weights, reach, packed_values, value_panels, sums);
                for (int64_t r = 0; r < std::min<int64_t>(2 * LANES, tokens - first); r++) {
                    bf16* to = static_cast<bf16*>(out) +
                               ((b * tokens + first + r) * heads + n) * head_dim;
                    for (int p = 0; p < value_panels; p++)
                        narrow_row(sums + p * 2 * SUMS + r * LANES,
                                   std::min(LANES, head_dim - p * LANES), to + p * LANES);
                }
            }
        }
        _tile_release();
    }
}

#endif
