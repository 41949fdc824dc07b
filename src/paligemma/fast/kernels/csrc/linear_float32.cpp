// out = x W^T + bias in float32, for many rows, by AMX tiles of bfloat16.
//
// A float32 number is exactly the sum of three bfloat16 numbers, a = a0 + a1 + a2, each the rounding
// of what is left: 3 x 8 bits for 24. Of the nine products of pieces, the six with i + j <= 2 are
// computed and summed in float32, the smallest first; the three left out are below 2^-23 of |a b|
// together, less than sums of float32 lose to rounding (Henry, Tang and Heinecke, arXiv 1904.06376).
// Two pieces and three products would be twice as fast, but keep 2^-17 only: log-probabilities of mini
// then differ from those in float64 by 2.2e-5 (root mean square, measured), where FMA and six products
// have 4.1e-6 and 4.4e-6, and we promise those of transformers within 5e-6.
//
// Weights stay in memory as they are, row by row, and are split by the thread that needs them, a part
// at a time. They are the left factor of the tiles: 16 outputs of 32 inputs, in the order of memory.
// Only the rows of x, the right factor, are put in another order, and sums are [output][row].
//
// Instructions for bfloat16 take denormal numbers for zero. So both factors are multiplied by 2^24,
// and sums by 2^-48 at the end. Every float32 number is a multiple of 2^-149, and so are its pieces:
// then none is denormal, and a product that still is would be less than 2^-174, far below all float32.
// What overflows in this (infinity, numbers above 2^86, sums above 2^79) and NaN leave sums that are
// not finite, whatever comes after; the caller then computes in another way.
#include "dots.h"
#include "linear.h"
#include "tiles.h"

#ifdef PG_AMX

namespace {

constexpr int PIECES = 3;
constexpr int STEP = PIECES * 2 * TILE;  // values: the pieces of 32 rows, or outputs, for 32 inputs
constexpr float SCALE = 0x1p24f, UNSCALE = 0x1p-48f;

constexpr int64_t MOST_PAIRS = 32;          // of tiles of rows at a time: their sums with a chunk of panels are 1 MB
constexpr int64_t MOST_BYTES = 32ll << 20;  // of their pieces
// Of 32 inputs, at a time: the pieces of a chunk of panels stay in the second-level cache. Each part has
// sums of its own, as float32 loses more when small terms meet a large sum.
constexpr int PART_STEPS = 16;

struct Product {
    const float* weight;  // [outputs][inputs]
    const float* bias;    // [outputs] or null
    const float* x;       // [rows][inputs]
    float* out;           // [rows][outputs]
    int inputs, outputs;

    int steps() const { return (inputs + TILE_K - 1) / TILE_K; }
};

// The nearest bfloat16 numbers, as float32: 65537 a, rounded to the 24 bits of float32, minus 65536 a
// (Veltkamp, in T. J. Dekker, Numerische Mathematik 18, 1971). NaN stays NaN.
inline Floats leading_bits(Floats a) { return a * 65537.0f - a * 65536.0f; }

// The pieces of up to 32 numbers (zeros beyond): a line of each of three tiles, whose words are pairs
// of the inputs i and i + 16. Any order will do that is the same for weights and rows.
inline void split(const float* from, int count, bf16* to) {
    alignas(64) float padded[TILE_K];
    if (count < TILE_K) {
        std::memset(padded, 0, sizeof padded);
        from = static_cast<float*>(std::memcpy(padded, from, count * sizeof(float)));
    }
    Floats low = load<Floats>(from) * SCALE, high = load<Floats>(from + LANES) * SCALE;
#pragma GCC unroll 3
    for (int piece = 0; piece < PIECES; piece++, to += 2 * TILE) {
        // The last pieces are what is left, which has 8 bits.
        const Floats a = piece == PIECES - 1 ? low : leading_bits(low);
        const Floats b = piece == PIECES - 1 ? high : leading_bits(high);
        const Words both = (Words)a >> 16 | (Words)b;
        std::memcpy(to, &both, sizeof both);
        low -= a;
        high -= b;
    }
}

// 16 lines of 16 words. Each turn moves the four bits of a line's number and the four of a place in it
// by one, so after four they have changed places.
inline __attribute__((always_inline)) void transpose(const void* from, Words (&lines)[LANES]) {
    const Words first{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, second = first + 8;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) lines[i] = load<Words>(static_cast<const uint8_t*>(from) + i * LINE);
#pragma GCC unroll 4
    for (int turn = 0; turn < 4; turn++) {
        Words next[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            const auto a = (__m512i)lines[i], b = (__m512i)lines[i + LANES / 2];
            next[2 * i] = (Words)_mm512_permutex2var_epi32(a, (__m512i)first, b);
            next[2 * i + 1] = (Words)_mm512_permutex2var_epi32(a, (__m512i)second, b);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) lines[i] = next[i];
    }
}

// A step of 16 rows, `count` of which are there, from input `first` on: lines of a pair of inputs each.
void pack_rows(const Product& p, int64_t row, int64_t count, int first, bf16* to) {
    alignas(64) bf16 pieces[STEP];
    const int inputs = std::min(TILE_K, p.inputs - first);
    for (int r = 0; r < LANES; r++)
        split(p.x + (r < count ? (row + r) * p.inputs + first : 0), r < count ? inputs : 0, pieces + r * TILE_K);
    for (int piece = 0; piece < PIECES; piece++) {
        Words lines[LANES];
        transpose(pieces + piece * 2 * TILE, lines);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) std::memcpy(to + piece * 2 * TILE + i * TILE_K, &lines[i], LINE);
    }
}

// The steps from `from` up to `to` of a panel.
void split_panel(const Product& p, int panel, int from, int to, bf16* out) {
    const int outputs = std::min(LANES, p.outputs - panel * LANES);
    for (int n = 0; n < LANES; n++, out += TILE_K) {
        const float* row = p.weight + (n < outputs ? static_cast<int64_t>(panel * LANES + n) * p.inputs : 0);
        for (int s = from; s < to; s++)
            split(row + s * TILE_K, n < outputs ? std::min(TILE_K, p.inputs - s * TILE_K) : 0, out + (s - from) * STEP);
    }
}

// Weights that are fetched from memory meanwhile: of some outputs.
struct Ahead {
    const float* at;
    int64_t stride;
    int outputs;

    void fetch(int step) const {
        const char* line = reinterpret_cast<const char*>(at + step * TILE_K);
        for (int i = 0; i < outputs; i++, line += stride * sizeof(float)) {
            _mm_prefetch(line, _MM_HINT_T1);
            _mm_prefetch(line + LINE, _MM_HINT_T1);
        }
    }
};

// One or two panels times one or two tiles of rows; `weights` and `rows` are steps of two.
template <int NP, int MT>
void multiply_pieces(const bf16* weights, const bf16* rows, int steps, float (*sums)[2][SUMS], const Ahead& ahead) {
    _tile_zero(0);
    if constexpr (MT > 1) _tile_zero(1);
    if constexpr (NP > 1) _tile_zero(2);
    if constexpr (MT > 1 && NP > 1) _tile_zero(3);
#define PG_WEIGHTS(piece)                                                       \
    _tile_loadd(4, weights + 2 * piece * TILE, 64);                             \
    if constexpr (NP > 1) _tile_loadd(5, weights + (2 * piece + 1) * TILE, 64);
#define PG_ROWS(piece)                                                          \
    _tile_loadd(6, rows + 2 * piece * TILE, 64);                                \
    if constexpr (MT > 1) _tile_loadd(7, rows + (2 * piece + 1) * TILE, 64);
#define PG_MULTIPLY                                                             \
    _tile_dpbf16ps(0, 4, 6);                                                    \
    if constexpr (MT > 1) _tile_dpbf16ps(1, 4, 7);                              \
    if constexpr (NP > 1) _tile_dpbf16ps(2, 5, 6);                              \
    if constexpr (MT > 1 && NP > 1) _tile_dpbf16ps(3, 5, 7);
    for (int s = 0; s < steps; s++, weights += STEP, rows += STEP) {
        ahead.fetch(s);
        PG_WEIGHTS(2) PG_ROWS(0) PG_MULTIPLY
        PG_WEIGHTS(1) PG_ROWS(1) PG_MULTIPLY
        PG_WEIGHTS(0) PG_ROWS(2) PG_MULTIPLY
        PG_ROWS(1) PG_MULTIPLY
        PG_WEIGHTS(1) PG_ROWS(0) PG_MULTIPLY
        PG_WEIGHTS(0) PG_MULTIPLY
    }
#undef PG_WEIGHTS
#undef PG_ROWS
#undef PG_MULTIPLY
    _tile_stored(0, sums[0][0], 64);
    if constexpr (MT > 1) _tile_stored(1, sums[1][0], 64);
    if constexpr (NP > 1) _tile_stored(2, sums[0][1], 64);
    if constexpr (MT > 1 && NP > 1) _tile_stored(3, sums[1][1], 64);
}

void add(const float* terms, float* sums) {
    for (int i = 0; i < SUMS; i += LANES) {
        const Floats sum = load<Floats>(sums + i) + load<Floats>(terms + i);
        std::memcpy(sums + i, &sum, sizeof sum);
    }
}

// Writes the sums of a panel and up to 16 rows. `check` becomes NaN if one of them is not finite, and
// stays 0 else.
void finish_sums(const Product& p, const float* sums, int panel, int64_t row, int64_t count, Floats& check) {
    const int outputs = std::min(LANES, p.outputs - panel * LANES);
    const auto are_there = static_cast<uint16_t>((1 << outputs) - 1);
    alignas(64) float bias[LANES] = {};
    if (p.bias != nullptr) std::memcpy(bias, p.bias + panel * LANES, outputs * sizeof(float));
    Words lines[LANES];
    transpose(sums, lines);
    float* to = p.out + row * p.outputs + panel * LANES;
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++) {
        if (r >= count) break;
        const Floats sum = (Floats)lines[r] * UNSCALE;
        check += sum * 0.0f;
        _mm512_mask_storeu_ps(to + r * static_cast<int64_t>(p.outputs), are_there, (__m512)(sum + load<Floats>(bias)));
    }
}

// Some rows, as pairs of tiles: [pairs][steps][PIECES][2][16 pairs of inputs][16][2].
struct PackedRows {
    const bf16* pieces;
    int64_t first, count;
};

// A part of the inputs, and the panels that meet it.
struct Part {
    int panel, panels, from, to;
    const float* next;  // weights that come after these, or null
};

// The panels of this thread times all rows.
struct Share {
    const Product& p;
    const PackedRows& rows;
    int steps, part;
    int64_t pairs;
    bf16* weights;  // [panels / 2][part][PIECES][2][16][32]
    float* kept;    // sums of the parts before: [tiles][CHUNK_PANELS][16 outputs][16 rows]
    Floats check{};

    Share(const Product& product, const PackedRows& packed)
        : p(product), rows(packed), steps(p.steps()), pairs((rows.count + 2 * LANES - 1) / (2 * LANES)) {
        const int parts = (steps + PART_STEPS - 1) / PART_STEPS;
        part = (steps + parts - 1) / parts;
        weights = scratch<bf16>(0, static_cast<size_t>(CHUNK_PANELS / 2 * part) * STEP);
        kept = scratch<float>(0, CHUNK_PANELS * 2 * pairs * SUMS);
    }

    // Two panels from `n` on, or the last one, times pair `m`.
    void multiply(const Part& of, int64_t m, int n) {
        const int panels = std::min(2, of.panels - n);
        const int tiles = rows.count > (2 * m + 1) * LANES ? 2 : 1;
        bf16* w = weights + static_cast<int64_t>(n / 2 * part) * STEP;
        if (m == 0) {
            for (int i = 0; i < panels; i++) split_panel(p, of.panel + n + i, of.from, of.to, w + i * TILE);
            // To a compiler, the instructions that load tiles do not read memory.
            asm volatile("" ::: "memory");
        }
        const int a_pair = static_cast<int>((2 * LANES + pairs - 1) / pairs), done = static_cast<int>(m) * a_pair;
        Ahead ahead{};
        if (of.next != nullptr)
            ahead = {of.next + (n * LANES + done) * static_cast<int64_t>(p.inputs), p.inputs,
                     std::clamp(2 * LANES - done, 0, a_pair)};
        auto run = panels > 1 ? (tiles > 1 ? multiply_pieces<2, 2> : multiply_pieces<2, 1>)
                              : (tiles > 1 ? multiply_pieces<1, 2> : multiply_pieces<1, 1>);
        alignas(64) float sums[2][2][SUMS];
        run(w, rows.pieces + (m * steps + of.from) * STEP, of.to - of.from, sums, ahead);
        for (int i = 0; i < tiles; i++)
            for (int j = 0; j < panels; j++) {
                float* before = kept + ((2 * m + i) * CHUNK_PANELS + n + j) * SUMS;
                if (of.from > 0) add(before, sums[i][j]);
                if (of.to < steps) {
                    std::memcpy(before, sums[i][j], sizeof sums[i][j]);
                    continue;
                }
                const int64_t row = (2 * m + i) * LANES;
                finish_sums(p, sums[i][j], of.panel + n + j, rows.first + row,
                            std::min<int64_t>(LANES, rows.count - row), check);
            }
    }

    // Whether all sums are finite.
    bool run() {
        int first, end;
        share((p.outputs + LANES - 1) / LANES, &first, &end);
        auto place = [&](int panel, int step) {
            return panel < end ? p.weight + static_cast<int64_t>(panel) * LANES * p.inputs + step * TILE_K : nullptr;
        };
        for (int chunk = first; chunk < end; chunk += CHUNK_PANELS)
            for (int from = 0; from < steps; from += part) {
                const int to = std::min(steps, from + part);
                const Part of{chunk, std::min(CHUNK_PANELS, end - chunk), from, to,
                              to < steps ? place(chunk, to) : place(chunk + CHUNK_PANELS, 0)};
                for (int64_t m = 0; m < pairs; m++)
                    for (int n = 0; n < of.panels; n += 2) multiply(of, m, n);
            }
        float total = 0.0f;
        for (int i = 0; i < LANES; i++) total += check[i];
        return total == 0.0f;
    }
};

bool multiply(const Product& p, int64_t count, int threads) {
    constexpr int64_t ROWS = 2 * LANES;
    const int steps = p.steps();
    const int64_t bytes = static_cast<int64_t>(steps) * STEP * sizeof(bf16);
    const int64_t most = std::clamp<int64_t>(MOST_BYTES / bytes, 1, MOST_PAIRS);
    const int64_t pairs = (count + ROWS - 1) / ROWS, times = (pairs + most - 1) / most;
    bf16* pieces = scratch<bf16>(1, (pairs + times - 1) / times * steps * STEP);
    bool is_finite = true;
#pragma omp parallel num_threads(threads) reduction(&& : is_finite)
    {
        configure_tiles();
        for (int64_t t = 0; t < times; t++) {
            const int64_t pair = pairs * t / times, after = pairs * (t + 1) / times;
            const PackedRows rows{pieces, pair * ROWS, std::min(after * ROWS, count) - pair * ROWS};
#pragma omp for schedule(static)
            for (int64_t i = 0; i < 2 * (after - pair) * steps; i++) {  // tiles of a step
                const int64_t step = i / 2, row = step / steps * ROWS + i % 2 * LANES;
                pack_rows(p, rows.first + row, rows.count - row, static_cast<int>(step % steps) * TILE_K,
                          pieces + step * STEP + i % 2 * TILE);
            }
            is_finite = Share(p, rows).run() && is_finite;
#pragma omp barrier
        }
        _tile_release();
    }
    return is_finite;
}

}  // namespace

#endif

// float32[rows, inputs] times float32[outputs, inputs] -> float32[rows, outputs]. Returns 0, with any
// numbers in `out`, where the caller has to compute in another way: without tiles, or where a sum is
// not finite.
extern "C" int paligemma_linear_float32(const float* weight, const float* bias, const float* x, int64_t rows,
                                        int inputs, int outputs, float* out, int threads) {
#ifdef PG_AMX
    return multiply({weight, bias, x, out, inputs, outputs}, rows, threads);
#else
    (void)weight, (void)bias, (void)x, (void)rows, (void)inputs, (void)outputs, (void)out, (void)threads;
    return 0;
#endif
}
