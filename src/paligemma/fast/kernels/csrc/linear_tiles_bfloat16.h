// Tiles of bfloat16 rows and weights. Panels are read where they stand: their lines of two inputs are
// rows of tiles.
#pragma once

#include "linear_tiles.h"

#ifdef PG_AMX

namespace {

constexpr int STEPS = 3;  // tiles of each row and panel that stay in the first-level cache beside the sums

struct Bfloat16Tiles {
    static constexpr int STEP = TILE_K, INPUT_BYTES = 2, ROW_BYTES = 64;

    const Linear& l;
    bf16* rows;  // [tiles][k / 32][16][32]

    Bfloat16Tiles(const Linear& layer, int64_t tiles)
        : l(layer), rows(scratch<bf16>(3, tiles * LANES * l.k)) {}

    void pack(const bf16* x, int inputs, int64_t row) const {
        pack_row(x, x != nullptr, inputs, row, l.k, rows);
    }
    const uint8_t* weights(const Part& part) const {
        return l.panel(part.panel) + static_cast<int64_t>(part.from) * l.input_bytes();
    }
    void multiply(const uint8_t* w, const Part& part, int64_t tile, int64_t tiles, float* sums,
                  NextPanels& next) const {
        const bf16* x = rows + tile * LANES * l.k;
        const int all_steps = (part.to - part.from) / TILE_K;
        for (int step = 0; step < all_steps; step += STEPS) {
            const int steps = std::min(STEPS, all_steps - step);
            for (int64_t m = 0; m < tiles; m += 2, next.at += steps * next.lines * LINE)
                for (int n = 0; n < part.count; n += 2) {
                    const bool two = m + 1 < tiles;
                    auto run = n + 1 < part.count ? (two ? multiply_tiles<2, 2> : multiply_tiles<1, 2>)
                                                  : (two ? multiply_tiles<2, 1> : multiply_tiles<1, 1>);
                    run(x + m * LANES * l.k + (part.from / TILE_K + step) * TILE,
                        static_cast<int64_t>(LANES) * l.k,
                        w + n * l.panel_bytes() + static_cast<int64_t>(step) * 2 * TILE, l.panel_bytes(),
                        steps, {sums + (m * part.even_count() + n) * SUMS, part.even_count() * SUMS, SUMS},
                        part.from == 0 && step == 0, next.at + n * next.stride, next.lines);
                }
        }
    }
};

}  // namespace

#endif
