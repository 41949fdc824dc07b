// Products of many rows by AMX tiles of 16 x 16.
#pragma once

#include "dots.h"
#include "linear.h"
#include "tiles.h"

#ifdef PG_AMX

namespace {

constexpr int MAX_TILE_ROWS = 512;              // rows whose inputs are kept in the cache at once
constexpr int CACHE_BYTES = 1400 * 1024;   // of the second-level cache, for those inputs
constexpr int STEPS = 8;                   // tiles of a panel that stay in the first-level cache
constexpr int TILE_CHUNK_PANELS = 64;           // panels whose unfinished sums wait for the next inputs

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

void multiply_block(const Linear& l, const bf16* x, int64_t first_row, int64_t rows) {
    const int64_t tiles = (rows + LANES - 1) / LANES;
    const int64_t row_bytes = tiles * LANES * 2;
    const int parts = static_cast<int>((row_bytes * l.k + CACHE_BYTES - 1) / CACHE_BYTES);
    const int unit = l.format == BFLOAT16 ? TILE_K : std::max(TILE_K, l.group);
    const int part = ((l.k + parts - 1) / parts + unit - 1) / unit * unit;
    const bool whole = part >= l.k;
    float* sums = scratch<float>(0, (whole ? PAIR : TILE_CHUNK_PANELS) * tiles * SUMS);
    bf16* widened = l.format == BFLOAT16 ? nullptr : scratch<bf16>(1, PAIR * LANES * part);
    int first, end;
    share(l.panels, &first, &end);
    for (int chunk = first; chunk < end; chunk += TILE_CHUNK_PANELS) {
        const int chunk_end = std::min(end, chunk + TILE_CHUNK_PANELS);
        for (int from = 0; from < l.k; from += part) {
            const int to = std::min(l.k, from + part);
            for (int p = chunk; p < chunk_end; p += PAIR) {
                const int count = std::min(PAIR, chunk_end - p);
                const uint8_t* w = l.panel(p) + static_cast<int64_t>(from) * LANES * 2;
                int64_t w_stride = l.panel_bytes();
                if (widened != nullptr) {
                    w_stride = 2 * LANES * part;
                    w = reinterpret_cast<const uint8_t*>(widened);
                    for (int n = 0; n < count; n++)
                        widen_panel(l, p + n, from, to, widened + n * LANES * part);
                }
                float* of_pair = sums + (whole ? 0 : (p - chunk) * tiles * SUMS);
                // A few tiles of both panels stay in the first-level cache while all rows pass by;
                // meanwhile the tiles that follow come from memory, some lines a step.
                const int all_steps = (to - from) / TILE_K;
                const int lines = widened ? 0 : static_cast<int>((64 + tiles) / (tiles + 1) / 2);
                for (int step = 0; step < all_steps; step += STEPS) {
                    const int steps = std::min(STEPS, all_steps - step);
                    const uint8_t* here = w + static_cast<int64_t>(step) * 2 * TILE;
                    const bool last = step + steps == all_steps;
                    const uint8_t* next = last ? w + 2 * w_stride : here + steps * 2 * TILE;
                    for (int64_t m = 0; m < tiles; m += 2) {
                        const bf16* at = x + m * LANES * l.k + (from / TILE_K + step) * TILE;
                        const bool two = m + 1 < tiles;
                        auto run = count == 2 ? (two ? multiply_tiles<2, 2> : multiply_tiles<1, 2>)
                                              : (two ? multiply_tiles<2, 1> : multiply_tiles<1, 1>);
                        run(at, static_cast<int64_t>(LANES) * l.k, here, w_stride, steps,
                            of_pair + m * SUMS, tiles * SUMS, from == 0 && step == 0, next, lines);
                        next += static_cast<int64_t>(steps) * lines * 64;
                    }
                }
                if (to < l.k) continue;
                for (int n = 0; n < count; n += l.epilogue == GEGLU ? PAIR : 1)
                    for (int64_t r = 0; r < rows; r++) {
                        const float* row = of_pair + n * tiles * SUMS + r * LANES;
                        finish(l, first_row + r, p + n, row, row + tiles * SUMS);
                    }
            }
        }
    }
}

void multiply_by_tiles(const Linear& l, const Rows& rows, int threads) {
    bf16* packed = scratch<bf16>(3, std::min<int64_t>(rows.count + LANES, MAX_TILE_ROWS) * l.k);
#pragma omp parallel num_threads(threads)
    {
        configure_tiles();
        for (int64_t row = 0; row < rows.count; row += MAX_TILE_ROWS) {
            const int64_t count = std::min<int64_t>(MAX_TILE_ROWS, rows.count - row);
#pragma omp for schedule(static)
            for (int64_t r = 0; r < (count + LANES - 1) / LANES * LANES; r++)
                pack_row(rows.x + (row + r) * rows.stride, r < count, rows.inputs, r, l.k, packed);
            multiply_block(l, packed, row, count);
#pragma omp barrier
        }
        _tile_release();
    }
}

}  // namespace

#endif
