// Products of many rows by AMX tiles of 16 x 16: the order in which rows and panels meet, so that both
// are in a cache when they do.
//
// What tiles do is up to a kind of product: Bfloat16Tiles (linear_tiles_bfloat16.h) or IntegerTiles
// (linear_tiles_integer.h). It has
//
//     STEP, INPUT_BYTES, ROW_BYTES   inputs multiplied at once; bytes of one, and of a row, in tiles
//     Kind(l, tiles)                 memory for so many tiles of rows, which threads share
//     pack(x, inputs, row)           puts a row there; a null pointer: zeros
//     weights(part)                  where those of a part are, or memory of this thread for them
//     multiply(weights, part, tile, tiles, sums, next)
//                                    sums[tiles][panels][16][16] (+)= up to BLOCK_TILES tiles of rows
//                                    times the weights
//
// Two tiles of rows meet two panels at a time. An odd number of panels has sums for one more. Panels
// are the inner dimension of the sums, so that those of successive products do not stand at the same
// place of two pages, where loads would wait for stores and lines compete for a place in the cache.
#pragma once

#include "dots.h"
#include "linear.h"
#include "tiles.h"

#ifdef PG_AMX

namespace {

constexpr int MAX_TILES = 32;              // of rows, whose inputs of a part stay in the second-level cache:
constexpr int64_t PART_OF_ROWS = 1 << 20;  // bytes
constexpr int PART_OF_PANEL = 1 << 16;     // bytes, so that four panels stay there too, and the next four
constexpr int BLOCK_TILES = 4;             // of rows, whose sums with four panels stay in the first-level cache

// Some inputs of some panels.
struct Part {
    int panel, count, from, to;

    int even_count() const { return (count + 1) / 2 * 2; }
};

// The panels that are fetched from memory meanwhile, so many lines of each for a step.
struct NextPanels {
    const uint8_t* at;
    int64_t stride;
    int lines;
};

void finish_tiles(const Linear& l, int64_t first_row, int64_t rows, const Part& part, const float* sums) {
    for (int64_t r = 0; r < rows; r++)
        for (int n = 0; n < part.count; n += l.epilogue == GEGLU ? PAIR : 1) {
            const float* row = sums + (r / LANES * part.even_count() + n) * SUMS + r % LANES * LANES;
            finish(l, first_row + r, part.panel + n, row, row + SUMS);
        }
}

// Inputs multiplied before the next panels: all, or a part, if rows and panels are too large for the cache.
template <typename Kind>
int part_of_inputs(const Linear& l, int64_t tiles) {
    constexpr int MOST = PART_OF_PANEL / (LANES * Kind::INPUT_BYTES);
    const int64_t bytes = tiles * LANES * Kind::INPUT_BYTES * l.k;
    const int64_t parts = std::max((bytes + PART_OF_ROWS - 1) / PART_OF_ROWS,
                                   static_cast<int64_t>((l.k + MOST - 1) / MOST));
    return static_cast<int>((l.k + parts - 1) / parts + Kind::STEP - 1) / Kind::STEP * Kind::STEP;
}

template <typename Kind>
void multiply_tile_rows(const Kind& x, int64_t first_row, int64_t rows) {
    const Linear& l = x.l;
    const int64_t tiles = (rows + LANES - 1) / LANES, pairs = (tiles + 1) / 2;
    const int part = part_of_inputs<Kind>(l, tiles);
    const bool whole = part >= l.k;
    float* sums = scratch<float>(0, (whole ? MANY_PANELS * BLOCK_TILES : CHUNK_PANELS * tiles) * SUMS);
    const int lines = Kind::STEP * l.input_bytes() / LINE;
    int first, end;
    share(l.panels, &first, &end);
    for (int chunk = first; chunk < end; chunk += CHUNK_PANELS) {
        const int chunk_end = std::min(end, chunk + CHUNK_PANELS);
        for (int from = 0; from < l.k; from += part) {
            const int to = std::min(l.k, from + part);
            for (int p = chunk; p < chunk_end; p += MANY_PANELS) {
                const int count = std::min(MANY_PANELS, chunk_end - p);
                auto at = [&](int panel, int input) {
                    return l.panel(panel) + static_cast<int64_t>(input) * l.input_bytes();
                };
                NextPanels next{p + count < chunk_end ? at(p + count, from)
                                : to < l.k            ? at(chunk, to)
                                                      : l.panel(chunk_end),
                                l.panel_bytes(), static_cast<int>((lines + pairs - 1) / pairs)};
                const Part of_panels{p, count, from, to};
                const auto weights = x.weights(of_panels);
                for (int64_t t = 0; t < tiles; t += BLOCK_TILES) {
                    const int64_t size = std::min<int64_t>(BLOCK_TILES, tiles - t);
                    float* of_block = sums + (whole ? 0 : (p - chunk) * tiles + t * of_panels.even_count()) * SUMS;
                    x.multiply(weights, of_panels, t, size, of_block, next);
                    if (to == l.k)
                        finish_tiles(l, first_row + t * LANES, std::min(size * LANES, rows - t * LANES),
                                     of_panels, of_block);
                }
            }
        }
    }
}

template <typename Kind>
void multiply_by_tiles(const Linear& l, const Rows<bf16>& rows, int threads) {
    const int64_t tiles = (rows.count + LANES - 1) / LANES;
    const int64_t times = (tiles + MAX_TILES - 1) / MAX_TILES;
    const Kind x(l, (tiles + times - 1) / times);
#pragma omp parallel num_threads(threads)
    {
        configure_tiles(Kind::ROW_BYTES);
        for (int64_t t = 0; t < times; t++) {
            const int64_t row = tiles * t / times * LANES, after = tiles * (t + 1) / times * LANES;
            const int64_t end = std::min(after, rows.count);
#pragma omp for schedule(static)
            for (int64_t r = row; r < after; r++)
                x.pack(r < end ? rows.x + r * rows.stride : nullptr, rows.inputs, r - row);
            multiply_tile_rows(x, row, end - row);
#pragma omp barrier
        }
        _tile_release();
    }
}

}  // namespace

#endif
