// Products of many rows by AMX tiles of 16 x 16.
#pragma once

#include "dots.h"
#include "linear.h"
#include "tiles.h"

#ifdef PG_AMX

namespace {

constexpr int MAX_TILES = 32;             // of rows, whose inputs of a part stay in the second-level cache:
constexpr int64_t PART_OF_ROWS = 1 << 20;  // bytes
constexpr int MAX_PART = 2048;            // inputs, so that four panels stay there too, and the next four
constexpr int BLOCK_TILES = 4;            // of rows, whose sums with four panels stay in the first-level
constexpr int STEPS = 3;                  // cache beside so many tiles of each row and panel

// Inputs `from` to `to` of a quantized panel as bfloat16 in the layout of a bfloat16 panel.
void widen_panel(const Linear& l, int panel, int from, int to, bf16* out) {
    const uint8_t* w = l.panel(panel);
    const __m512i byte = _mm512_set1_epi32(l.format == INT8 ? 0xff : 0x0f);
    const float offset = l.format == INT8 ? -128.0f : -8.0f;
    alignas(64) uint16_t order[32];  // [first 16, second 16] -> pairs
    for (int i = 0; i < 16; i++) {
        order[2 * i] = static_cast<uint16_t>(i);
        order[2 * i + 1] = static_cast<uint16_t>(16 + i);
    }
    const __m512i interleave = _mm512_load_si512(order);
    auto four = [&](__m512i words, __m512 scale, __m512 shift, bf16* to_pairs) {
        auto value = [&](int bits) {
            __m512i q = _mm512_and_si512(_mm512_srli_epi32(words, bits), byte);
            return _mm512_fmadd_ps(_mm512_cvtepi32_ps(q), scale, shift);
        };
        for (int half = 0; half < 2; half++) {
            __m512bh both = _mm512_cvtne2ps_pbh(value(16 * half + 8), value(16 * half));
            _mm512_store_si512(to_pairs + half * 32,
                               _mm512_permutexvar_epi16(interleave, (__m512i)both));
        }
    };
    for (int i = from; i < to;) {
        __m512 scale = (__m512)widen_half(l.panel_scales(panel) + i / l.group * LANES);
        __m512 shift = _mm512_mul_ps(scale, _mm512_set1_ps(offset));
        const int end = std::min(to, (i / l.group + 1) * l.group);
        if (l.format == INT8) {
            for (; i < end; i += 4, out += 64)
                four(_mm512_loadu_si512(w + i * LANES), scale, shift, out);
        } else {
            for (; i < end; i += 8, out += 128) {
                __m512i both = _mm512_loadu_si512(w + i * LANES / 2);
                four(both, scale, shift, out);
                four(_mm512_srli_epi32(both, 4), scale, shift, out + 64);
            }
        }
    }
}

// Weights of some panels, inputs `from` to `to`, and those that are fetched from memory meanwhile:
// `lines` for each step and panel.
struct TileWeights {
    const uint8_t* at;
    int64_t stride;
    const uint8_t* next;
    int lines;
    int count, from, to;
};

// sums[panels][tiles][16][16] (+)= up to BLOCK_TILES tiles of rows, packed, times the weights.
// Returns how many bytes of each panel were fetched.
int64_t multiply_tile_block(const TileWeights& w, const bf16* x, int k, int64_t tiles, float* sums,
                            int64_t fetched) {
    const int all_steps = (w.to - w.from) / TILE_K;
    for (int step = 0; step < all_steps; step += STEPS) {
        const int steps = std::min(STEPS, all_steps - step);
        for (int64_t m = 0; m < tiles; m += 2, fetched += steps * w.lines * LINE)
            for (int n = 0; n < w.count; n += 2) {
                const bool two = m + 1 < tiles;
                auto run = n + 1 < w.count ? (two ? multiply_tiles<2, 2> : multiply_tiles<1, 2>)
                                           : (two ? multiply_tiles<2, 1> : multiply_tiles<1, 1>);
                run(x + m * LANES * k + (w.from / TILE_K + step) * TILE, static_cast<int64_t>(LANES) * k,
                    w.at + n * w.stride + static_cast<int64_t>(step) * 2 * TILE, w.stride, steps,
                    sums + (n * tiles + m) * SUMS, tiles * SUMS, w.from == 0 && step == 0,
                    w.next + n * w.stride + fetched, w.lines);
            }
    }
    return fetched;
}

void finish_tiles(const Linear& l, int64_t first_row, int64_t rows, int panel, int count, int64_t tiles,
                  const float* sums) {
    for (int n = 0; n < count; n += l.epilogue == GEGLU ? PAIR : 1)
        for (int64_t r = 0; r < rows; r++) {
            const float* row = sums + n * tiles * SUMS + r * LANES;
            finish(l, first_row + r, panel + n, row, row + tiles * SUMS);
        }
}

// Inputs multiplied before the next panels: all, or a part, if rows and panels are too large for the cache.
int part_of_inputs(const Linear& l, int64_t tiles) {
    const int64_t bytes = tiles * LANES * 2 * l.k;
    const int64_t parts = std::max((bytes + PART_OF_ROWS - 1) / PART_OF_ROWS,
                                   static_cast<int64_t>((l.k + MAX_PART - 1) / MAX_PART));
    const int unit = l.format == BFLOAT16 ? TILE_K : std::max(TILE_K, l.group);
    return static_cast<int>((l.k + parts - 1) / parts + unit - 1) / unit * unit;
}

void multiply_tile_rows(const Linear& l, const bf16* x, int64_t first_row, int64_t rows) {
    const int64_t tiles = (rows + LANES - 1) / LANES, pairs = (tiles + 1) / 2;
    const int part = part_of_inputs(l, tiles);
    const bool whole = part >= l.k;
    float* sums = scratch<float>(0, (whole ? MANY_PANELS * BLOCK_TILES : CHUNK_PANELS * tiles) * SUMS);
    bf16* widened = l.format == BFLOAT16 ? nullptr : scratch<bf16>(1, MANY_PANELS * LANES * part);
    const int lines = widened ? 0 : static_cast<int>((TILE * 2 / LINE + pairs - 1) / pairs);
    int first, end;
    share(l.panels, &first, &end);
    for (int chunk = first; chunk < end; chunk += CHUNK_PANELS) {
        const int chunk_end = std::min(end, chunk + CHUNK_PANELS);
        for (int from = 0; from < l.k; from += part) {
            const int to = std::min(l.k, from + part);
            for (int p = chunk; p < chunk_end; p += MANY_PANELS) {
                const int count = std::min(MANY_PANELS, chunk_end - p);
                auto at = [&](int panel, int input) {
                    return l.panel(panel) + static_cast<int64_t>(input) * LANES * 2;
                };
                const uint8_t* next = p + count < chunk_end ? at(p + count, from)
                                      : to < l.k            ? at(chunk, to)
                                                            : l.panel(chunk_end);
                TileWeights weights{at(p, from), l.panel_bytes(), next, lines, count, from, to};
                if (widened != nullptr) {
                    weights.at = reinterpret_cast<const uint8_t*>(widened);
                    weights.stride = 2 * LANES * part;
                    for (int n = 0; n < count; n++)
                        widen_panel(l, p + n, from, to, widened + n * LANES * part);
                }
                int64_t fetched = 0;
                for (int64_t t = 0; t < tiles; t += BLOCK_TILES) {
                    const int64_t size = std::min<int64_t>(BLOCK_TILES, tiles - t);
                    float* of_block = sums + (whole ? 0 : (p - chunk) * tiles + t * count) * SUMS;
                    fetched = multiply_tile_block(weights, x + t * LANES * l.k, l.k, size, of_block, fetched);
                    if (to == l.k)
                        finish_tiles(l, first_row + t * LANES, std::min(size * LANES, rows - t * LANES), p,
                                     count, size, of_block);
                }
            }
        }
    }
}

void multiply_by_tiles(const Linear& l, const Rows& rows, int threads) {
    const int64_t tiles = (rows.count + LANES - 1) / LANES;
    const int64_t times = (tiles + MAX_TILES - 1) / MAX_TILES;
    bf16* packed = scratch<bf16>(3, (tiles + times - 1) / times * LANES * l.k);
#pragma omp parallel num_threads(threads)
    {
        configure_tiles();
        for (int64_t t = 0; t < times; t++) {
            const int64_t row = tiles * t / times * LANES, after = tiles * (t + 1) / times * LANES;
            const int64_t end = std::min(after, rows.count);
#pragma omp for schedule(static)
            for (int64_t r = row; r < after; r++)
                pack_row(rows.x + r * rows.stride, r < end, rows.inputs, r - row, l.k, packed);
            multiply_tile_rows(l, packed, row, end - row);
#pragma omp barrier
        }
        _tile_release();
    }
}

}  // namespace

#endif
