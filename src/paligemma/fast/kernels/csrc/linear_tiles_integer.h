// Tiles of bytes: quantized rows and weights, whose products are summed as int32 for each group of
// inputs, and then scaled and added to float32.
//
// Tiles multiply one block while the vector units scale the products of the one before.
#pragma once

#include "linear_tiles.h"

#ifdef PG_AMX

namespace {

typedef uint8_t Bytes __attribute__((vector_size(LINE)));

// What tiles multiply between two visits to a block's sums: GROUPS groups of GROUP inputs. A row of a
// tile has no more inputs than a group.
struct Int8Steps {
    static constexpr int GROUPS = 1, GROUP = 128, ROW_BYTES = 64;

    static void unpack(const uint8_t* line, int8_t* out) {
        for (int i = 0; i < GROUP / 4; i++, line += LINE, out += LINE) {
            const Bytes q = load<Bytes>(line) - 128;
            std::memcpy(out, &q, sizeof q);
        }
    }
};

struct Int4Steps {
    static constexpr int GROUPS = 2, GROUP = 32, ROW_BYTES = 32;

    static void unpack(const uint8_t* line, int8_t* out) {
        for (int i = 0; i < GROUP / 8; i++, line += LINE, out += 2 * LINE) {
            const Words both = load<Words>(line);
            const Bytes low = (Bytes)(both & 0x0f0f0f0fu) - 8, high = (Bytes)(both >> 4 & 0x0f0f0f0fu) - 8;
            std::memcpy(out, &low, sizeof low);
            std::memcpy(out + LINE, &high, sizeof high);
        }
    }
};

// A step of 16 rows or of a panel. Weights have a sign here, so that no offset is left to subtract.
template <typename Steps>
struct alignas(64) StepTiles {
    int8_t values[Steps::GROUPS][Steps::GROUP * LANES];  // tiles: of rows, or of lines of 4 inputs
    float scales[Steps::GROUPS][LANES];
};

// A step of one or two tiles of rows times two panels.
template <typename Steps>
struct BlockStep {
    const StepTiles<Steps>*x, *w;
    int32_t (*dots)[2][2][SUMS];  // [GROUPS][tiles][panels]
    float* sums;          // [tiles][panels][16][16]
    int64_t sums_stride;  // between tiles
    int tiles;
    bool first;

    // Adds the products of a tile of rows to its sums.
    void scale(int m) const {
        Floats scale[2][Steps::GROUPS];
        for (int n = 0; n < 2; n++)
            for (int g = 0; g < Steps::GROUPS; g++) scale[n][g] = load<Floats>(w[n].scales[g]);
        float* to = sums + m * sums_stride;
        for (int r = 0; r < LANES; r++, to += LANES) {
            Floats sum[2];
            for (int n = 0; n < 2; n++) sum[n] = first ? Floats{} : load<Floats>(to + n * SUMS);
            for (int g = 0; g < Steps::GROUPS; g++)
                for (int n = 0; n < 2; n++) {
                    const Floats both_scales = scale[n][g] * x[m].scales[g][r];
                    const Ints dot = load<Ints>(dots[g][m][n] + r * LANES);
                    sum[n] += __builtin_convertvector(dot, Floats) * both_scales;
                }
            for (int n = 0; n < 2; n++) std::memcpy(to + n * SUMS, &sum[n], sizeof sum[n]);
        }
    }
};

// Tiles 0-3 = a group of MT tiles of rows times two panels.
template <int MT, typename Steps>
inline __attribute__((always_inline)) void multiply_group(const StepTiles<Steps>* x,
                                                          const StepTiles<Steps>* w, int group) {
    constexpr int TILE_BYTES = LANES * Steps::ROW_BYTES;
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (MT > 1) {
        _tile_zero(2);
        _tile_zero(3);
    }
#pragma GCC unroll 2
    for (int i = 0; i < Steps::GROUP * LANES; i += TILE_BYTES) {
        _tile_loadd(6, w[0].values[group] + i, LINE);
        _tile_loadd(4, x[0].values[group] + i, Steps::ROW_BYTES);
        _tile_loadd(7, w[1].values[group] + i, LINE);
        if constexpr (MT > 1) _tile_loadd(5, x[1].values[group] + i, Steps::ROW_BYTES);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        if constexpr (MT > 1) {
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    }
}

// Products of a step into its `dots`, while those of the step before are scaled: between the products
// and their stores, so that the processor finds both to do.
template <int MT, typename Steps>
void multiply_step(const BlockStep<Steps>& step, const BlockStep<Steps>& before) {
#pragma GCC unroll 2
    for (int g = 0; g < Steps::GROUPS; g++) {
        multiply_group<MT>(step.x, step.w, g);
        for (int m = 2 * g / Steps::GROUPS; m < std::min(before.tiles, 2 * (g + 1) / Steps::GROUPS); m++)
            before.scale(m);
        _tile_stored(0, step.dots[g][0][0], LINE);
        _tile_stored(1, step.dots[g][0][1], LINE);
        if constexpr (MT > 1) {
            _tile_stored(2, step.dots[g][1][0], LINE);
            _tile_stored(3, step.dots[g][1][1], LINE);
        }
    }
}

template <typename Steps>
struct IntegerTiles {
    using Tiles = StepTiles<Steps>;
    static constexpr int STEP = Steps::GROUPS * Steps::GROUP, INPUT_BYTES = 1, ROW_BYTES = Steps::ROW_BYTES;

    const Linear& l;
    int64_t groups, steps;
    Tiles* rows;  // [tiles / BLOCK_TILES][steps][BLOCK_TILES]

    IntegerTiles(const Linear& layer, int64_t tiles)
        : l(layer), groups(l.k / Steps::GROUP), steps((l.k + STEP - 1) / STEP) {
        rows = scratch<Tiles>(3, (tiles + BLOCK_TILES - 1) / BLOCK_TILES * steps * BLOCK_TILES);
    }

    void pack(const bf16* x, int inputs, int64_t row) const {
        auto* q = scratch<int8_t>(2, l.k + 2 * groups * sizeof(float));
        auto* scale = reinterpret_cast<float*>(q + l.k);
        if (x != nullptr) quantize_row(x, inputs, l, {q, scale, reinterpret_cast<int32_t*>(scale + groups)});
        const int64_t tile = row / LANES, lane = row % LANES;
        Tiles* to = rows + tile / BLOCK_TILES * steps * BLOCK_TILES + tile % BLOCK_TILES;
        for (int64_t g = 0; g < steps * Steps::GROUPS; g++) {
            Tiles& step = to[g / Steps::GROUPS * BLOCK_TILES];
            const bool is_there = x != nullptr && g < groups;
            step.scales[g % Steps::GROUPS][lane] = is_there ? scale[g] : 0.0f;
            int8_t* values = step.values[g % Steps::GROUPS] + lane * ROW_BYTES;
            for (int i = 0; i < Steps::GROUP; i += ROW_BYTES, values += LANES * ROW_BYTES) {
                if (is_there) std::memcpy(values, q + g * Steps::GROUP + i, ROW_BYTES);
                else std::memset(values, 0, ROW_BYTES);
            }
        }
    }

    // Each step is unpacked when the first rows meet it, so that tiles work meanwhile.
    Tiles* weights(const Part& part) const {
        return scratch<Tiles>(1, (part.to - part.from + STEP - 1) / STEP * MANY_PANELS);
    }

    // The step of all panels from input `first` on.
    void unpack(const Part& part, int first, Tiles* step) const {
        for (int n = 0; n < part.even_count(); n++, step++) {
            const int panel = part.panel + std::min(n, part.count - 1);
            const uint8_t* line = l.panel(panel) + static_cast<int64_t>(first) * l.input_bytes();
            const bf16* scales = l.panel_scales(panel) + first / Steps::GROUP * LANES;
            for (int g = 0; g < Steps::GROUPS; g++, line += Steps::GROUP * l.input_bytes(), scales += LANES) {
                if (first + g * Steps::GROUP >= l.k) {
                    std::memset(step->values[g], 0, sizeof step->values[g]);
                    std::memset(step->scales[g], 0, sizeof step->scales[g]);
                    continue;
                }
                // Those of the panels that follow: too few for the processor to foresee.
                __builtin_prefetch(scales + MANY_PANELS * groups * LANES, 0, 3);
                const Floats wide = widen_half(scales);
                std::memcpy(step->scales[g], &wide, sizeof wide);
                Steps::unpack(line, step->values[g]);
            }
        }
        // To a compiler, the instructions that load tiles do not read memory.
        asm volatile("" ::: "memory");
    }

    void multiply(Tiles* w, const Part& part, int64_t tile, int64_t tiles, float* sums,
                  NextPanels& next) const {
        // With two groups, those of the step before are in use when the first of this step are stored.
        alignas(64) int32_t dots[Steps::GROUPS][Steps::GROUPS][2][2][SUMS];
        const Tiles* x = rows + (tile / BLOCK_TILES * steps + part.from / STEP) * BLOCK_TILES;
        BlockStep<Steps> before{};
        int turn = 0;
        for (int i = part.from; i < part.to; i += STEP, x += BLOCK_TILES, w += MANY_PANELS) {
            if (tile == 0) unpack(part, i, w);
            for (int64_t m = 0; m < tiles; m += 2, next.at += next.lines * LINE)
                for (int n = 0; n < part.count; n += 2, turn = (turn + 1) % Steps::GROUPS) {
                    const uint8_t* fetched = next.at + n * next.stride;
                    for (int line = 0; line < next.lines; line++, fetched += LINE) {
                        _mm_prefetch(reinterpret_cast<const char*>(fetched), _MM_HINT_T1);
                        _mm_prefetch(reinterpret_cast<const char*>(fetched + next.stride), _MM_HINT_T1);
                    }
                    const int size = m + 1 < tiles ? 2 : 1;
                    const BlockStep<Steps> step{x + m, w + n, dots[turn],
                                                sums + (m * part.even_count() + n) * SUMS,
                                                part.even_count() * SUMS, size, i == 0};
                    if (size > 1) multiply_step<2>(step, before);
                    else multiply_step<1>(step, before);
                    before = step;
                }
        }
        for (int m = 0; m < before.tiles; m++) before.scale(m);
    }
};

}  // namespace

#endif
