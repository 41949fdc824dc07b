// out = epilogue(x W^T + bias) for weights packed in panels of 16 outputs (see
// ../../quantization.py).
//
// With one row, reading the weights from memory is the bottleneck; with many rows, arithmetic is. So
// there are two implementations: `rows_*` keeps a few rows in registers while weights stream by, and
// `multiply` blocks for the caches and, if the processor has them, uses AMX tiles. Quantized weights
// are multiplied with one row as integers (the row is quantized too, per group), and with many rows
// as bfloat16, one block of a panel at a time.
#include "tiles.h"

#include <algorithm>
#include <vector>

namespace {

enum Format { BFLOAT16 = 0, INT8 = 1, INT4 = 2 };
enum Epilogue { NONE = 0, GELU = 1, GEGLU = 2 };

struct Linear {
    int format;
    const uint8_t* values;
    const bf16* scales;  // [panels][k / group][16]
    int group;
    int panels;
    int k;  // padded inputs: a multiple of 32 and of the group
    const float* bias;
    int epilogue;
    void* out;
    int64_t out_stride;
    int out_is_float;

    int64_t panel_bytes() const {
        int64_t weights = static_cast<int64_t>(k) * LANES;
        return format == BFLOAT16 ? 2 * weights : format == INT8 ? weights : weights / 2;
    }
    const uint8_t* panel(int p) const { return values + p * panel_bytes(); }
    const bf16* panel_scales(int p) const {
        return scales + static_cast<int64_t>(p) * (k / group) * LANES;
    }
};

// Panels whose outputs are computed together: GEGLU needs a gate panel and the up panel after it.
constexpr int PAIR = 2;

// What happens to 16 sums of one row before they are stored. `up` is used by GEGLU only.
inline void finish(const Linear& l, int64_t row, int panel, const float* sums, const float* up) {
    alignas(64) float v[LANES];
    const int epilogue = l.epilogue;
    if (l.bias == nullptr) std::memcpy(v, sums, sizeof v);
    else {
        const float* bias = l.bias + panel * LANES;
        for (int i = 0; i < LANES; i++) v[i] = sums[i] + bias[i];
    }
    if (epilogue != NONE) {
#pragma omp simd aligned(v : 64)
        for (int i = 0; i < LANES; i++) v[i] = gelu(v[i]);
    }
    if (epilogue == GEGLU)
        for (int i = 0; i < LANES; i++) v[i] *= up[i];
    const int64_t start = row * l.out_stride + (epilogue == GEGLU ? panel / PAIR : panel) * LANES;
    if (l.out_is_float) std::memcpy(static_cast<float*>(l.out) + start, v, sizeof v);
    else narrow16(v, static_cast<bf16*>(l.out) + start);
}

// The finished sums of R rows and NP adjacent panels.
template <int NP, int R>
void finish_block(const Linear& l, int64_t row, int panel, const float (*sums)[R][LANES]) {
    const int step = l.epilogue == GEGLU ? PAIR : 1;
    for (int p = 0; p < NP; p += step)
        for (int r = 0; r < R; r++)
            finish(l, row + r, panel + p, sums[p][r], step == PAIR ? sums[p + 1][r] : nullptr);
}

// A row quantized by groups: x ~ scale * q. `start` is what the weights' offset adds, negated.
struct QuantizedRow {
    int8_t* q;       // [k]
    float* scale;    // [k / group]
    int32_t* start;  // [k / group]
};

void quantize_row(const bf16* x, int inputs, const Linear& l, const QuantizedRow& out) {
    const int offset = l.format == INT8 ? 128 : 8;
    for (int g = 0; g < l.k / l.group; g++) {
        const int first = g * l.group;
        const int count = std::max(0, std::min(l.group, inputs - first));
        // Without its sign a bfloat16 orders like the whole number with its bits.
        int32_t bits = 0;
#pragma omp simd reduction(max : bits)
        for (int i = 0; i < count; i++) bits = std::max(bits, x[first + i] & 0x7fff);
        const float largest = widen(static_cast<bf16>(bits));
        const float inverse = bits > 0 ? 127.0f / largest : 0.0f;
        int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < count; i++) {
            const int32_t q = static_cast<int32_t>(std::nearbyint(widen(x[first + i]) * inverse));
            out.q[first + i] = static_cast<int8_t>(q);
            sum += q;
        }
        for (int i = count; i < l.group; i++) out.q[first + i] = 0;
        // NaN and infinity must come out as NaN, not as some number.
        out.scale[g] = bits < 0x7f80 ? largest / 127.0f : NAN;
        out.start[g] = -offset * sum;
    }
}

// ---------------------------------------------------------------- a few rows, weights streaming

#ifdef PG_AVX512

constexpr int64_t AHEAD = 2048;  // bytes to fetch before they are needed, in each panel

// How far ahead lies what is needed AHEAD bytes later: in this panel, or, at its end, at the start
// of the panel that takes its place in the next block.
inline int64_t distance(int64_t at, int64_t panel_bytes, int panels) {
    return at + AHEAD < panel_bytes ? AHEAD : AHEAD + (panels - 1) * panel_bytes;
}

inline __m512 widen16(const bf16* x) {
    __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline __m512i repeated(const void* four_bytes) {
    int32_t x;
    std::memcpy(&x, four_bytes, sizeof x);
    return _mm512_set1_epi32(x);
}

template <int NP, int R>
void rows_bfloat16(const Linear& l, const bf16* x, int64_t row, int panel) {
    const uint8_t* w = l.panel(panel);
    const int64_t stride = l.panel_bytes();
    __m512 sums[NP][R];
    for (auto& of_panel : sums)
        for (auto& sum : of_panel) sum = _mm512_setzero_ps();
    for (int i = 0; i < l.k / 2; i++) {
        const int64_t ahead = distance(i * 64, stride, NP);
#pragma GCC unroll 8
        for (int p = 0; p < NP; p++) {
            const uint8_t* at = w + p * stride + i * 64;
            _mm_prefetch(reinterpret_cast<const char*>(at + ahead), _MM_HINT_T0);
            __m512bh weights = (__m512bh)_mm512_loadu_si512(at);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                sums[p][r] = _mm512_dpbf16_ps(
                    sums[p][r], weights, (__m512bh)repeated(x + static_cast<int64_t>(r) * l.k + 2 * i));
        }
    }
    alignas(64) float stored[NP][R][LANES];
    for (int p = 0; p < NP; p++)
        for (int r = 0; r < R; r++) _mm512_store_ps(stored[p][r], sums[p][r]);
    finish_block<NP, R>(l, row, panel, stored);
}

template <int NP, int R, int FORMAT>
void rows_integer(const Linear& l, const QuantizedRow* x, int64_t row, int panel) {
    const uint8_t* w = l.panel(panel);
    const int64_t stride = l.panel_bytes();
    const int groups = l.k / l.group;
    const int steps = l.group / (FORMAT == INT8 ? 4 : 8);
    const __m512i low = _mm512_set1_epi8(0x0f);
    __m512 sums[NP][R];
    for (auto& of_panel : sums)
        for (auto& sum : of_panel) sum = _mm512_setzero_ps();
    for (int g = 0; g < groups; g++) {
        __m512i dots[NP][R];
#pragma GCC unroll 8
        for (int p = 0; p < NP; p++)
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) dots[p][r] = _mm512_set1_epi32(x[r].start[g]);
        for (int i = g * steps; i < (g + 1) * steps; i++) {
            const int64_t ahead = distance(i * 64, stride, NP);
#pragma GCC unroll 8
            for (int p = 0; p < NP; p++) {
                const uint8_t* at = w + p * stride + i * 64;
                _mm_prefetch(reinterpret_cast<const char*>(at + ahead), _MM_HINT_T0);
                __m512i weights = _mm512_loadu_si512(at);
                if constexpr (FORMAT == INT8) {
#pragma GCC unroll 8
                    for (int r = 0; r < R; r++)
                        dots[p][r] = _mm512_dpbusd_epi32(dots[p][r], weights, repeated(x[r].q + 4 * i));
                } else {
                    __m512i first = _mm512_and_si512(weights, low);
                    __m512i second = _mm512_and_si512(_mm512_srli_epi32(weights, 4), low);
#pragma GCC unroll 8
                    for (int r = 0; r < R; r++) {
                        const int8_t* q = x[r].q + 8 * i;
                        dots[p][r] = _mm512_dpbusd_epi32(dots[p][r], first, repeated(q));
                        dots[p][r] = _mm512_dpbusd_epi32(dots[p][r], second, repeated(q + 4));
                    }
                }
            }
        }
#pragma GCC unroll 8
        for (int p = 0; p < NP; p++) {
            const bf16* scales = l.panel_scales(panel + p) + g * LANES;
            // Those of the panel that takes this one's place: too few for the processor to foresee.
            _mm_prefetch(reinterpret_cast<const char*>(scales + NP * groups * LANES), _MM_HINT_T1);
            __m512 scale = widen16(scales);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                sums[p][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[p][r]),
                                             _mm512_mul_ps(scale, _mm512_set1_ps(x[r].scale[g])),
                                             sums[p][r]);
        }
    }
    alignas(64) float stored[NP][R][LANES];
    for (int p = 0; p < NP; p++)
        for (int r = 0; r < R; r++) _mm512_store_ps(stored[p][r], sums[p][r]);
    finish_block<NP, R>(l, row, panel, stored);
}

#else  // any processor: plain loops over the 16 lanes, which compilers turn into vector code

template <int NP, int R>
void rows_bfloat16(const Linear& l, const bf16* x, int64_t row, int panel) {
    float sums[NP][R][LANES] = {};
    for (int p = 0; p < NP; p++) {
        const bf16* w = reinterpret_cast<const bf16*>(l.panel(panel + p));
        for (int i = 0; i < l.k / 2; i++) {
            float even[LANES], odd[LANES];
            for (int o = 0; o < LANES; o++) {
                even[o] = widen(w[i * 32 + 2 * o]);
                odd[o] = widen(w[i * 32 + 2 * o + 1]);
            }
            for (int r = 0; r < R; r++) {
                const float x0 = widen(x[static_cast<int64_t>(r) * l.k + 2 * i]);
                const float x1 = widen(x[static_cast<int64_t>(r) * l.k + 2 * i + 1]);
                for (int o = 0; o < LANES; o++) sums[p][r][o] += even[o] * x0 + odd[o] * x1;
            }
        }
    }
    finish_block<NP, R>(l, row, panel, sums);
}

template <int NP, int R, int FORMAT>
void rows_integer(const Linear& l, const QuantizedRow* x, int64_t row, int panel) {
    float sums[NP][R][LANES] = {};
    const int steps = l.group / 4;  // four inputs at a time
    for (int p = 0; p < NP; p++) {
        const uint8_t* w = l.panel(panel + p);
        for (int g = 0; g < l.k / l.group; g++) {
            int32_t dots[R][LANES];
            for (int r = 0; r < R; r++)
                for (int o = 0; o < LANES; o++) dots[r][o] = x[r].start[g];
            for (int i = g * steps; i < (g + 1) * steps; i++) {
                const uint8_t* at = FORMAT == INT8 ? w + i * 64 : w + i / 2 * 64;
                const int shift = FORMAT == INT4 && i % 2 ? 4 : 0;
                const int mask = FORMAT == INT4 ? 0x0f : 0xff;
                for (int r = 0; r < R; r++)
                    for (int o = 0; o < LANES; o++)
                        for (int j = 0; j < 4; j++)
                            dots[r][o] += ((at[4 * o + j] >> shift) & mask) * x[r].q[4 * i + j];
            }
            const bf16* scales = l.panel_scales(panel + p) + g * LANES;
            for (int r = 0; r < R; r++)
                for (int o = 0; o < LANES; o++)
                    sums[p][r][o] += static_cast<float>(dots[r][o]) * widen(scales[o]) * x[r].scale[g];
        }
    }
    finish_block<NP, R>(l, row, panel, sums);
}

#endif

constexpr int MANY_PANELS = 4;  // as many streams as the memory likes
constexpr int MANY_ROWS = 4;

// R rows against the panels from `first` up to `end`.
template <int R, typename Row>
void few_rows(const Linear& l, const Row* x, int64_t row, int first, int end) {
    auto block = [&](auto count, int p) {
        constexpr int NP = decltype(count)::value;
        if constexpr (std::is_same_v<Row, bf16>) {
            rows_bfloat16<NP, R>(l, x, row, p);
        } else if (l.format == INT8) {
            rows_integer<NP, R, INT8>(l, x, row, p);
        } else {
            rows_integer<NP, R, INT4>(l, x, row, p);
        }
    };
    int p = first;
    for (; p + MANY_PANELS <= end; p += MANY_PANELS) block(std::integral_constant<int, MANY_PANELS>{}, p);
    for (; p + PAIR <= end; p += PAIR) block(std::integral_constant<int, PAIR>{}, p);
    if (p < end) {
        // A single panel cannot be half of a pair: such layers have an even number of panels.
        if (l.epilogue != GEGLU) block(std::integral_constant<int, 1>{}, p);
    }
}

// The panels of this thread: whole blocks, so that each thread reads one stretch of memory.
void share(int panels, int* first, int* end) {
    const int threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const int blocks = (panels + MANY_PANELS - 1) / MANY_PANELS;
    *first = std::min(panels, blocks * thread / threads * MANY_PANELS);
    *end = std::min(panels, blocks * (thread + 1) / threads * MANY_PANELS);
}

void stream(const Linear& l, const bf16* x, int64_t x_stride, int64_t rows, int inputs, int threads) {
    const int groups = l.format == BFLOAT16 ? 0 : l.k / l.group;
    // Every thread reads these; the caller's memory outlives the parallel region.
    bf16* padded = nullptr;
    std::vector<QuantizedRow> quantized;
    if (l.format == BFLOAT16) {
        padded = scratch<bf16>(0, rows * l.k);
        for (int64_t r = 0; r < rows; r++) {
            std::memcpy(padded + r * l.k, x + r * x_stride, inputs * sizeof(bf16));
            std::memset(padded + r * l.k + inputs, 0, (l.k - inputs) * sizeof(bf16));
        }
    } else {
        int8_t* q = scratch<int8_t>(0, rows * l.k);
        float* scale = scratch<float>(1, rows * groups);
        int32_t* start = scratch<int32_t>(2, rows * groups);
        for (int64_t r = 0; r < rows; r++) {
            quantized.push_back({q + r * l.k, scale + r * groups, start + r * groups});
            quantize_row(x + r * x_stride, inputs, l, quantized.back());
        }
    }
#pragma omp parallel num_threads(threads)
    {
        int first, end;
        share(l.panels, &first, &end);
        // Few panels at a time, so that the next rows find them in the cache.
        for (int p = first; p < end; p += MANY_PANELS) {
            const int last = std::min(end, p + MANY_PANELS);
            for (int64_t r = 0; r < rows;) {
                auto run = [&](auto count) {
                    constexpr int R = decltype(count)::value;
                    if (l.format == BFLOAT16) few_rows<R>(l, padded + r * l.k, r, p, last);
                    else few_rows<R>(l, quantized.data() + r, r, p, last);
                    r += R;
                };
                if (r + MANY_ROWS <= rows) run(std::integral_constant<int, MANY_ROWS>{});
                else if (r + 2 <= rows) run(std::integral_constant<int, 2>{});
                else run(std::integral_constant<int, 1>{});
            }
        }
    }
}

// -------------------------------------------------------------------- many rows: tiles of 16 x 16

#ifdef PG_AMX

constexpr int MAX_ROWS = 512;              // rows whose inputs are kept in the cache at once
constexpr int CACHE_BYTES = 1400 * 1024;   // of the second-level cache, for those inputs
constexpr int STEPS = 8;                   // tiles of a panel that stay in the first-level cache
constexpr int CHUNK_PANELS = 64;           // panels whose unfinished sums wait for the next inputs

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
        __m512 scale = widen16(l.panel_scales(panel) + i / l.group * LANES);
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
    float* sums = scratch<float>(0, (whole ? PAIR : CHUNK_PANELS) * tiles * SUMS);
    bf16* widened = l.format == BFLOAT16 ? nullptr : scratch<bf16>(1, PAIR * LANES * part);
    int first, end;
    share(l.panels, &first, &end);
    for (int chunk = first; chunk < end; chunk += CHUNK_PANELS) {
        const int chunk_end = std::min(end, chunk + CHUNK_PANELS);
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

void multiply(const Linear& l, const bf16* x, int64_t x_stride, int64_t rows, int inputs, int threads) {
    bf16* packed = scratch<bf16>(3, std::min<int64_t>(rows + LANES, MAX_ROWS) * l.k);
#pragma omp parallel num_threads(threads)
    {
        configure_tiles();
        for (int64_t row = 0; row < rows; row += MAX_ROWS) {
            const int64_t count = std::min<int64_t>(MAX_ROWS, rows - row);
#pragma omp for schedule(static)
            for (int64_t r = 0; r < (count + LANES - 1) / LANES * LANES; r++)
                pack_row(x + (row + r) * x_stride, r < count, inputs, r, l.k, packed);
            multiply_block(l, packed, row, count);
#pragma omp barrier
        }
        _tile_release();
    }
}

constexpr int64_t FEW_ROWS_BFLOAT16 = 1;
constexpr int64_t FEW_ROWS_INTEGER = 16;  // above, widening the weights once is cheaper

#endif

}  // namespace

// float: rows of `inputs` bfloat16 -> rows of 16 * panels (GEGLU: half as many) outputs.
extern "C" void paligemma_linear(int format, const void* values, const void* scales, int group,
                                 int panels, int k, const float* bias, int epilogue, const void* x,
                                 int64_t x_stride, int64_t rows, int inputs, void* out,
                                 int64_t out_stride, int out_is_float, int threads) {
    Linear l{format,   static_cast<const uint8_t*>(values), static_cast<const bf16*>(scales),
             group,    panels, k, bias, epilogue, out, out_stride, out_is_float};
    const bf16* in = static_cast<const bf16*>(x);
#ifdef PG_AMX
    if (rows > (format == BFLOAT16 ? FEW_ROWS_BFLOAT16 : FEW_ROWS_INTEGER)) {
        multiply(l, in, x_stride, rows, inputs, threads);
        return;
    }
#endif
    stream(l, in, x_stride, rows, inputs, threads);
}
