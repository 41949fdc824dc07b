// AMX: tiles of 16 rows, products of two blocks of rows with two panels.
#pragma once

#include "common.h"

#include <algorithm>

#ifdef PG_AMX

namespace {

constexpr int TILE_K = 32;            // inputs of one tile
constexpr int TILE = LANES * TILE_K;  // values of one tile
constexpr int SUMS = LANES * LANES;   // sums of one tile

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles 0-3 are 16 x 16 sums, 4-5 16 rows of so many bytes, 6-7 the weights of 16 outputs for them.
void configure_tiles(int row_bytes = 64) {
    TileConfig config;
    for (int t = 0; t < 8; t++) {
        config.row_bytes[t] = static_cast<uint16_t>(t == 4 || t == 5 ? row_bytes : 64);
        config.rows[t] = static_cast<uint8_t>(t < 6 ? 16 : row_bytes / 4);
    }
    asm volatile("" : : "m"(config));  // because GCC takes the instruction to read 8 bytes only
    _tile_loadconfig(&config);
}

// Where sums are: float[16][16] of each block of 16 rows and panel.
struct TileSums {
    float* at;
    int64_t block_stride, panel_stride;

    float* of(int block, int panel) const { return at + block * block_stride + panel * panel_stride; }
};

// Two blocks of 16 rows times two panels, or fewer.
// `next` is fetched meanwhile: the weights that come after those in use.
template <int MT, int NP>
void multiply_tiles(const bf16* x, int64_t x_stride, const uint8_t* w, int64_t w_stride, int steps,
                    const TileSums& sums, bool first, const uint8_t* next, int lines) {
#define PG_SUM(t, m, n)                          \
    if constexpr (m < MT && n < NP) {            \
        if (first) _tile_zero(t);                \
        else _tile_loadd(t, sums.of(m, n), 64);  \
    }
    PG_SUM(0, 0, 0) PG_SUM(1, 0, 1) PG_SUM(2, 1, 0) PG_SUM(3, 1, 1)
#undef PG_SUM
    for (int s = 0; s < steps; s++, x += TILE, w += 2 * TILE) {
        for (int line = 0; line < lines; line++, next += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
            if constexpr (NP > 1) _mm_prefetch(reinterpret_cast<const char*>(next + w_stride), _MM_HINT_T1);
        }
        _tile_loadd(6, w, 64);
        _tile_loadd(4, x, 64);
        if constexpr (NP > 1) _tile_loadd(7, w + w_stride, 64);
        if constexpr (MT > 1) _tile_loadd(5, x + x_stride, 64);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (NP > 1) _tile_dpbf16ps(1, 4, 7);
        if constexpr (MT > 1) _tile_dpbf16ps(2, 5, 6);
        if constexpr (MT > 1 && NP > 1) _tile_dpbf16ps(3, 5, 7);
    }
#define PG_STORE(t, m, n) \
    if constexpr (m < MT && n < NP) _tile_stored(t, sums.of(m, n), 64);
    PG_STORE(0, 0, 0) PG_STORE(1, 0, 1) PG_STORE(2, 1, 0) PG_STORE(3, 1, 1)
#undef PG_STORE
}

// One row of the tiles that hold rows: [block of 16 rows][32 inputs] -> 1 KB each, zeros beyond the rows and inputs.
inline void pack_row(const bf16* x, bool is_there, int inputs, int64_t row, int k, bf16* out) {
    bf16* to = out + row / LANES * LANES * k + row % LANES * TILE_K;
    for (int s = 0; s < k / TILE_K; s++, to += TILE) {
        const int count = is_there ? std::clamp(inputs - s * TILE_K, 0, TILE_K) : 0;
        if (count) std::memcpy(to, x + s * TILE_K, count * sizeof(bf16));
        if (count < TILE_K) std::memset(to + count, 0, (TILE_K - count) * sizeof(bf16));
    }
}

}  // namespace

#endif
