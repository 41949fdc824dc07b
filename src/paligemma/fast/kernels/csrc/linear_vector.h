// Products by vector instructions, for any number of rows.
//
// A few rows are multiplied while weights stream from memory, which is the bottleneck. Many rows are
// limited by arithmetic, so everything that a loop reads again stays in a cache: sums of 12 rows and
// 2 panels (with 16 registers, 6 rows and 1 panel) in registers, a part of these panels in the first
// level, the same part of all rows in the second. Weights that come next are fetched meanwhile.
#pragma once

#include "dots.h"
#include "linear.h"

#include <array>
#include <utility>

namespace {

constexpr int64_t FEW_ROWS_AT_MOST = 24;  // which pass by while weights stream
// Rows of a block, whose sums registers hold. Few rows meet more panels: streams from memory.
constexpr int BLOCK_OF_FEW = 6, BLOCK_OF_MANY = REGISTER == 64 ? 12 : 6;
constexpr int AHEAD_LINES = 128;  // to fetch ahead while one block of rows streams
constexpr int PART_LINES = 192;   // of one or two panels at once, in the first-level cache
// Of a part of all rows, in the second-level cache with their sums.
constexpr int PART_BYTES = (REGISTER == 64 ? 288 : 144) * 1024;

// Panels at once: as many sums as registers can hold, or as hide the latency of a few rows.
constexpr int panels_at_once(int rows) {
    if (REGISTER == 64) return rows <= BLOCK_OF_FEW ? MANY_PANELS : 2;
    return rows == 1 ? MANY_PANELS : rows <= 3 ? 2 : 1;
}

// Lines of each panel that are multiplied before the next panels.
constexpr int part_lines(int panels) { return panels == MANY_PANELS ? PART_LINES / 2 : PART_LINES; }

// Rows in blocks of nearly equal size.
struct RowBlocks {
    int64_t rows, count, least, larger;  // `larger` blocks have a row more than `least`

    RowBlocks(int64_t all, int most)
        : rows(all), count((all + most - 1) / most), least(all / count), larger(all % count) {}
    int64_t start(int64_t block) const { return block * least + std::min(block, larger); }
    int size(int64_t block) const { return static_cast<int>(least + (block < larger)); }
};

// What the products read of a block of rows: [lines][PHASES][rows] words, and of quantized rows
// [groups][rows] scales and starts.
struct PackedBlock {
    uint32_t* words;
    float* scale;
    int32_t* start;
};

template <typename Dots>
struct PackedRows {
    const Linear& l;
    RowBlocks blocks;
    int64_t lines, groups;
    uint32_t* words;

    PackedRows(const Linear& layer, int64_t rows, int block_rows)
        : l(layer), blocks(rows, block_rows), lines(l.k / Dots::INPUTS),
          groups(l.is_quantized() ? l.k / l.group : 0) {
        words = scratch<uint32_t>(0, rows * (lines * Dots::PHASES + 2 * groups));
    }
    PackedBlock block(int64_t b) const {
        const int64_t row = blocks.start(b);
        uint32_t* scales = words + blocks.rows * lines * Dots::PHASES;
        return {words + row * lines * Dots::PHASES, reinterpret_cast<float*>(scales) + row * groups,
                reinterpret_cast<int32_t*>(scales) + (blocks.rows + row) * groups};
    }
};

template <typename Dots>
void pack_block(const Linear& l, const Rows<typename Dots::Input>& rows, int64_t first, int count,
                const PackedBlock& to) {
    const int groups = l.is_quantized() ? l.k / l.group : 0;
    auto* row = scratch<typename Dots::Row>(1, l.k);
    float* scale = scratch<float>(2, 2 * groups);
    int32_t* start = reinterpret_cast<int32_t*>(scale + groups);
    for (int r = 0; r < count; r++) {
        const auto* x = rows.x + (first + r) * rows.stride;
        if constexpr (std::is_same_v<typename Dots::Row, typename Dots::Input>) {
            std::memcpy(row, x, rows.inputs * sizeof *x);
            std::memset(row + rows.inputs, 0, (l.k - rows.inputs) * sizeof *x);
        } else {
            quantize_row(x, rows.inputs, l, {row, scale, start});
        }
        uint32_t* word = to.words + r;
        for (int i = 0; i < l.k; i += Dots::INPUTS)
            for (int phase = 0; phase < Dots::PHASES; phase++, word += count)
                *word = Dots::word(row + i, phase);
        for (int g = 0; g < groups; g++) {
            to.scale[g * count + r] = scale[g];
            to.start[g * count + r] = start[g];
        }
    }
}

// Weights to fetch meanwhile: one line every 2^shift lines, of each panel.
struct Ahead {
    const uint8_t* at;
    int shift;
};

template <typename Dots, int NP, int R>
inline __attribute__((always_inline)) void add_dots(const uint8_t* w, int64_t stride, const uint32_t* x,
                                                    int lines, const Ahead& ahead,
                                                    typename Dots::Sum (&sums)[R][NP * HALVES]) {
    for (int i = 0; i < lines; i++, w += LINE) {
#pragma GCC unroll 8
        for (int p = 0; p < NP; p++)
            __builtin_prefetch(ahead.at + p * stride + (i >> ahead.shift) * LINE, 0, 3);
#pragma GCC unroll 8
        for (int phase = 0; phase < Dots::PHASES; phase++, x += R) {
            Words weights[NP * HALVES];
#pragma GCC unroll 8
            for (int j = 0; j < NP * HALVES; j++)
                weights[j] = Dots::weights(w + j / HALVES * stride + j % HALVES * REGISTER, phase);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                const Words word = repeated(x[r]);
#pragma GCC unroll 8
                for (int j = 0; j < NP * HALVES; j++) sums[r][j] = Dots::add(sums[r][j], weights[j], word);
            }
        }
    }
}

// sums[NP][R][16] += lines `from` to `to` of NP panels times a block of R rows.
template <typename Dots, int NP, int R>
void multiply_part(const Linear& l, int panel, int from, int to, const PackedBlock& x, Ahead ahead,
                   float* sums) {
    const uint8_t* w = l.panel(panel) + static_cast<int64_t>(from) * LINE;
    const int64_t stride = l.panel_bytes();
    const uint32_t* words = x.words + static_cast<int64_t>(from) * Dots::PHASES * R;
    constexpr int FLOATS = LANES / HALVES;
    auto place = [&](int r, int j) {
        return reinterpret_cast<StoredFloats*>(sums + (j / HALVES * R + r) * LANES + j % HALVES * FLOATS);
    };
    if constexpr (std::is_same_v<typename Dots::Sum, Floats>) {
        Floats kept[R][NP * HALVES];
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int j = 0; j < NP * HALVES; j++) kept[r][j] = *place(r, j);
        add_dots<Dots, NP, R>(w, stride, words, to - from, ahead, kept);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int j = 0; j < NP * HALVES; j++) *place(r, j) = kept[r][j];
    } else {
        const int lines = l.group / Dots::INPUTS, groups = l.k / l.group;
        for (int g = from / lines; g < to / lines; g++) {
            typename Dots::Sum dots[R][NP * HALVES];
#pragma GCC unroll 16
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int j = 0; j < NP * HALVES; j++) dots[r][j] = Dots::first(x.start[g * R + r]);
            add_dots<Dots, NP, R>(w, stride, words, lines, ahead, dots);
            w += lines * LINE;
            words += lines * Dots::PHASES * R;
            ahead.at += (lines >> ahead.shift) * LINE;
#pragma GCC unroll 8
            for (int j = 0; j < NP * HALVES; j++) {
                const bf16* at = l.panel_scales(panel + j / HALVES) + g * LANES + j % HALVES * FLOATS;
                // Those of the panels that follow: too few for the processor to foresee.
                __builtin_prefetch(at + NP * groups * LANES, 0, 3);
                const Floats scale = widen_half(at);
#pragma GCC unroll 16
                for (int r = 0; r < R; r++) {
                    const Ints dot = Dots::total(dots[r][j], x.start[g * R + r]);
                    const Floats both_scales = scale * x.scale[g * R + r];
                    *place(r, j) += __builtin_convertvector(dot, Floats) * both_scales;
                }
            }
        }
    }
}

// The same for `count` panels; sums[count][R][16].
template <typename Dots, int R>
void multiply_panels(const Linear& l, int panel, int count, int from, int to, const PackedBlock& x,
                     Ahead ahead, float* sums) {
    constexpr int NP = panels_at_once(R);
    int p = 0;
    for (; p + NP <= count; p += NP)
        multiply_part<Dots, NP, R>(l, panel + p, from, to, x, ahead, sums + p * R * LANES);
    for (; p < count; p++)
        multiply_part<Dots, 1, R>(l, panel + p, from, to, x, ahead, sums + p * R * LANES);
}

// `multiply_panels` for each number of rows from 1 up.
template <typename Dots, int... R>
constexpr auto by_rows(std::integer_sequence<int, R...>) {
    return std::array{multiply_panels<Dots, R + 1>...};
}

// All rows times the panels from `first` up to `end`.
template <typename Dots>
void multiply_chunk(const PackedRows<Dots>& x, int64_t first_row, int first, int end, bool last) {
    constexpr auto RUN = by_rows<Dots>(std::make_integer_sequence<int, BLOCK_OF_MANY>());
    const Linear& l = x.l;
    const RowBlocks& blocks = x.blocks;
    const int lines = static_cast<int>(x.lines), group = panels_at_once(static_cast<int>(blocks.least));
    const int part = blocks.count == 1 ? AHEAD_LINES / group : part_lines(group);
    const int shift = 63 - __builtin_clzll(static_cast<uint64_t>(blocks.count));
    float* sums = scratch<float>(2, blocks.rows * (end - first) * LANES);
    std::memset(sums, 0, blocks.rows * (end - first) * LANES * sizeof(float));
    for (int from = 0; from < lines; from += part) {
        const int to = std::min(lines, from + part);
        for (int p = first; p < end; p += group) {
            const int count = std::min(group, end - p);
            // What comes next: the panels after these, the next part, or the next chunk.
            const uint8_t* next = p + group < end ? l.panel(p + group) + static_cast<int64_t>(from) * LINE
                                  : to < lines    ? l.panel(first) + static_cast<int64_t>(to) * LINE
                                                  : l.panel(last ? first : end);
            for (int64_t b = 0; b < blocks.count; b++) {
                const int size = blocks.size(b);
                float* at = sums + (blocks.start(b) * (end - first) + (p - first) * size) * LANES;
                RUN[size - 1](l, p, count, from, to, x.block(b), {next, shift}, at);
                next += ((to - from) >> shift) * LINE;
            }
        }
    }
    const int step = l.epilogue == GEGLU ? PAIR : 1;
    for (int64_t b = 0; b < blocks.count; b++) {
        const int size = blocks.size(b);
        const float* of_block = sums + blocks.start(b) * (end - first) * LANES;
        for (int r = 0; r < size; r++)
            for (int p = first; p < end; p += step) {
                const float* at = of_block + ((p - first) * size + r) * LANES;
                finish(l, first_row + blocks.start(b) + r, p, at, at + size * LANES);
            }
    }
}

template <typename Dots>
void multiply_rows(const Linear& l, const Rows<typename Dots::Input>& rows, int threads) {
    constexpr int64_t MOST = PART_BYTES / (PART_LINES * Dots::PHASES * 4);
    const int64_t times = (rows.count + MOST - 1) / MOST;
    for (int64_t t = 0; t < times; t++) {
        const int64_t first_row = rows.count * t / times;
        const int64_t count = rows.count * (t + 1) / times - first_row;
        const bool few = count <= FEW_ROWS_AT_MOST;
        const PackedRows<Dots> x(l, count, few ? BLOCK_OF_FEW : BLOCK_OF_MANY);
#pragma omp parallel for num_threads(threads) if (!few)
        for (int64_t b = 0; b < x.blocks.count; b++)
            pack_block<Dots>(l, rows, first_row + x.blocks.start(b), x.blocks.size(b), x.block(b));
#pragma omp parallel num_threads(threads)
        {
            int first, end;
            share(l.panels, &first, &end);
            const int chunk = few ? MANY_PANELS : CHUNK_PANELS;
            for (int p = first; p < end; p += chunk)
                multiply_chunk<Dots>(x, first_row, p, std::min(end, p + chunk), p + chunk >= end);
        }
    }
}

}  // namespace
