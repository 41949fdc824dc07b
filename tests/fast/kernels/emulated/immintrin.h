// The AVX-512 and AMX intrinsics that the kernels use, in plain C++, so that tests run their code on
// any processor. It stands before the compiler's own header of this name on the include path.
//
// They follow the operations in Intel's Software Developer's Manual, volume 2. Rounding is that of the
// instructions: bfloat16 dot products and conversions take denormal numbers for zero, flush denormal
// results, and round to nearest even. A kernel that breaks a rule that the processor would enforce
// (tiles that are not configured, or whose shapes do not match) ends the process.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

typedef float __m512 __attribute__((vector_size(64)));
typedef long long __m512i __attribute__((vector_size(64)));
typedef long long __m256i __attribute__((vector_size(32)));
typedef short __m512bh __attribute__((vector_size(64)));
typedef short __m256bh __attribute__((vector_size(32)));

enum { _MM_HINT_T0, _MM_HINT_T1 };
static inline void _mm_prefetch(const void*, int) {}

namespace emulated {

inline void require(bool holds, const char* rule) {
    if (holds) return;
    std::fprintf(stderr, "emulated instruction: %s\n", rule);
    std::abort();
}

template <typename To, typename From>
To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <typename T, size_t N>
struct Parts {  // a register as N numbers
    T at[N];
};
template <typename T, typename Register>
auto parts(const Register& from) {
    return bits_as<Parts<T, sizeof(Register) / sizeof(T)>>(from);
}

template <typename Register>
Register load(const void* from) {
    Register to;
    std::memcpy(&to, from, sizeof to);
    return to;
}

inline float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
inline float widened(uint16_t x) { return flushed(bits_as<float>(static_cast<uint32_t>(x) << 16)); }
inline uint16_t rounded(float given) {
    const uint32_t bits = bits_as<uint32_t>(flushed(given));
    if (std::isnan(given)) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
// A product of two bfloat16 numbers is exact in float32, so this rounds once, like the fused step.
inline float step(float sum, uint16_t a, uint16_t b) {
    return flushed(sum + widened(a) * widened(b));
}

}  // namespace emulated

// ------------------------------------------------------------------------------ loads and stores

static inline __m512 _mm512_loadu_ps(const void* from) { return emulated::load<__m512>(from); }
static inline __m512i _mm512_loadu_si512(const void* from) { return emulated::load<__m512i>(from); }
static inline void _mm512_storeu_ps(void* to, __m512 from) { std::memcpy(to, &from, sizeof from); }
static inline void _mm512_mask_storeu_ps(void* to, uint16_t mask, __m512 from) {
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) static_cast<float*>(to)[i] = from[i];
}

// ------------------------------------------------------------------------------------- arithmetic

static inline __m512 _mm512_set1_ps(float x) { return x - __m512{}; }
static inline float _mm512_reduce_add_ps(__m512 x) {
    float sum = 0;
    for (int i = 0; i < 16; i++) sum += x[i];
    return sum;
}

static inline __m512i _mm512_set1_epi32(int32_t x) {
    emulated::Parts<int32_t, 16> all;
    for (auto& part : all.at) part = x;
    return emulated::bits_as<__m512i>(all);
}
static inline __m512i _mm512_add_epi64(__m512i a, __m512i b) { return a + b; }
static inline long long _mm512_reduce_add_epi64(__m512i x) {
    long long sum = 0;
    for (int i = 0; i < 8; i++) sum += x[i];
    return sum;
}
static inline __m512i _mm512_permutex2var_epi32(__m512i a, __m512i indices, __m512i b) {
    auto index = emulated::parts<uint32_t>(indices), first = emulated::parts<uint32_t>(a),
         second = emulated::parts<uint32_t>(b);
    for (auto& i : index.at) i = (i & 16 ? second : first).at[i & 15];
    return emulated::bits_as<__m512i>(index);
}
static inline __m512i _mm512_dpbusd_epi32(__m512i sums, __m512i without_sign, __m512i with_sign) {
    auto sum = emulated::parts<uint32_t>(sums);  // without a sign, so that overflow wraps
    auto a = emulated::parts<uint8_t>(without_sign);
    auto b = emulated::parts<int8_t>(with_sign);
    for (int i = 0; i < 64; i++) sum.at[i / 4] += static_cast<uint32_t>(a.at[i] * b.at[i]);
    return emulated::bits_as<__m512i>(sum);
}

static inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 sums) {
    for (int i = 0; i < 16; i++) sums[i] = std::fma(a[i], b[i], sums[i]);
    return sums;
}

// ------------------------------------------------------------------------------------ conversions

static inline __m256bh _mm512_cvtneps_pbh(__m512 x) {
    emulated::Parts<uint16_t, 16> out;
    for (int i = 0; i < 16; i++) out.at[i] = emulated::rounded(x[i]);
    return emulated::bits_as<__m256bh>(out);
}

// VDPBF16PS: to each sum the product of the odd numbers is added first, then that of the even ones.
static inline __m512 _mm512_dpbf16_ps(__m512 sums, __m512bh a, __m512bh b) {
    auto x = emulated::parts<uint16_t>(a), y = emulated::parts<uint16_t>(b);
    for (int i = 0; i < 16; i++) {
        const float odd = emulated::step(emulated::flushed(sums[i]), x.at[2 * i + 1], y.at[2 * i + 1]);
        sums[i] = emulated::step(odd, x.at[2 * i], y.at[2 * i]);
    }
    return sums;
}

// ------------------------------------------------------------------------------------------- tiles

namespace emulated {

struct Tile {
    int rows = 0, row_bytes = 0;  // none: not configured
    alignas(64) uint8_t bytes[16][64] = {};

    template <typename T>
    T at(int row, int column) const {
        return load<T>(&bytes[row][column * sizeof(T)]);
    }
};
inline thread_local Tile tiles[8];

inline Tile& tile(int number) {
    require(number >= 0 && number < 8 && tiles[number].rows > 0, "the tile is not configured");
    return tiles[number];
}

// The rows of `a` times the columns of `b`, 4 bytes of each at a time; `cell(row, k, column)`.
template <typename Cell>
void product(int to, int a, int b, Cell cell) {
    const Tile& x = tile(a);
    const Tile& y = tile(b);
    require(tile(to).rows == x.rows && tile(to).row_bytes == y.row_bytes && x.row_bytes == 4 * y.rows,
            "the shapes of three tiles must match");
    require(to != a && to != b && a != b, "three tiles must differ");
    for (int row = 0; row < x.rows; row++)
        for (int column = 0; column < y.row_bytes / 4; column++) cell(row, column, y.rows);
}

// TDPBF16PS: even and odd numbers have sums of their own, which are added to the old sum at the end.
inline void dot_bfloat16(int to, int a, int b) {
    product(to, a, b, [&](int row, int column, int steps) {
        float even = 0, odd = 0;
        for (int k = 0; k < steps; k++) {
            even = step(even, tile(a).at<uint16_t>(row, 2 * k), tile(b).at<uint16_t>(k, 2 * column));
            odd = step(odd, tile(a).at<uint16_t>(row, 2 * k + 1), tile(b).at<uint16_t>(k, 2 * column + 1));
        }
        const float sum = flushed(flushed(tile(to).at<float>(row, column)) + flushed(even + odd));
        std::memcpy(&tile(to).bytes[row][4 * column], &sum, sizeof sum);
    });
}

// TDPBSSD: to each sum the products of bytes, both with a sign; overflow wraps.
inline void dot_bytes(int to, int a, int b) {
    product(to, a, b, [&](int row, int column, int steps) {
        uint32_t sum = tile(to).at<uint32_t>(row, column);
        for (int k = 0; k < steps; k++)
            for (int i = 0; i < 4; i++)
                sum += static_cast<uint32_t>(tile(a).at<int8_t>(row, 4 * k + i) *
                                             tile(b).at<int8_t>(k, 4 * column + i));
        std::memcpy(&tile(to).bytes[row][4 * column], &sum, sizeof sum);
    });
}

inline void configure(const void* config) {
    const uint8_t* bytes = static_cast<const uint8_t*>(config);
    require(bytes[0] == 1 && bytes[1] == 0, "the configuration is not of palette 1");
    for (int t = 0; t < 8; t++) {
        tiles[t] = Tile{};
        tiles[t].rows = bytes[48 + t];
        tiles[t].row_bytes = load<uint16_t>(bytes + 16 + 2 * t);
        require(tiles[t].rows <= 16 && tiles[t].row_bytes <= 64, "a tile is larger than 16 x 64 bytes");
    }
}

inline void load_tile(int number, const void* from, int64_t stride) {
    Tile& to = tile(number);
    for (int row = 0; row < to.rows; row++)
        std::memcpy(to.bytes[row], static_cast<const uint8_t*>(from) + row * stride, to.row_bytes);
}

inline void store_tile(int number, void* to, int64_t stride) {
    const Tile& from = tile(number);
    for (int row = 0; row < from.rows; row++)
        std::memcpy(static_cast<uint8_t*>(to) + row * stride, from.bytes[row], from.row_bytes);
}

}  // namespace emulated

static inline void _tile_loadconfig(const void* config) { emulated::configure(config); }
static inline void _tile_release() {
    for (auto& tile : emulated::tiles) tile = emulated::Tile{};
}
static inline void _tile_zero(int t) { std::memset(emulated::tile(t).bytes, 0, sizeof(emulated::Tile::bytes)); }
static inline void _tile_loadd(int t, const void* from, int64_t stride) { emulated::load_tile(t, from, stride); }
static inline void _tile_stored(int t, void* to, int64_t stride) { emulated::store_tile(t, to, stride); }
static inline void _tile_dpbf16ps(int to, int a, int b) { emulated::dot_bfloat16(to, a, b); }
static inline void _tile_dpbssd(int to, int a, int b) { emulated::dot_bytes(to, a, b); }
