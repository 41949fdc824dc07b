// Dot products of a line of packed weights (64 bytes: some inputs of 16 outputs) with rows, for each
// format, by the best instructions of this level.
//
// A line takes PHASES steps. In each, the weights of all 16 outputs meet the same 32-bit word of a
// row: as many of its inputs as an instruction multiplies and sums at once. 16 weights or sums are
// HALVES registers. A format has
//
//     Input, Row             of a row: as it is given, and as it is multiplied (quantized or not)
//     INPUTS, PHASES         of a line
//     word(x, phase)         the word of a step; x: the row from the line's first input on,
//                            as it is multiplied
//     weights(at, phase)     a register of weights, from a half of a line
//     Sum, add(sum, w, x)    the sums of a register, and the step
//     first(start)           quantized formats: the sums before a group,
//     total(sum, start)      and as int32 after it, which `start` has been added to once
#pragma once

#include "common.h"

#if !defined(PG_AVX512) && defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int LINE = 64;  // bytes

#if defined(PG_AVX512)
constexpr int REGISTER = 64;
#elif defined(__AVX2__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif
constexpr int HALVES = LINE / REGISTER;

typedef float Floats __attribute__((vector_size(REGISTER)));
typedef float StoredFloats __attribute__((vector_size(REGISTER), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(REGISTER)));
typedef uint32_t Words __attribute__((vector_size(REGISTER)));
typedef uint16_t Shorts __attribute__((vector_size(REGISTER)));

template <typename T>
inline T load(const void* at) {
    T to;
    std::memcpy(&to, at, sizeof to);
    return to;
}

inline Words repeated(uint32_t word) { return Words{} + word; }

inline Floats widen_half(const bf16* x) {
    typedef uint16_t Half __attribute__((vector_size(REGISTER / 2)));
    return (Floats)(__builtin_convertvector(load<Half>(x), Words) << 16);
}

// Keeps a compiler from moving instructions between sums, for which AVX2 has too few registers.
template <typename T>
inline T added_now(T sum) {
#if defined(__AVX2__)
    asm volatile("" : "+x"(sum));
#endif
    return sum;
}

inline Floats add_product(Floats sum, Words w, Words x) {
#if defined(PG_AVX512)
    return (Floats)_mm512_fmadd_ps((__m512)w, (__m512)x, (__m512)sum);
#elif defined(__FMA__)  // written out, because compilers choose forms that need moves beside them
    asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(w), "x"(x));
    return sum;
#else
    return sum + (Floats)w * (Floats)x;
#endif
}

struct Float32Dots {
    using Sum = Floats;
    using Input = float;
    using Row = float;
    static constexpr int INPUTS = 1, PHASES = 1;
    static uint32_t word(const float* x, int) { return load<uint32_t>(x); }
    static Words weights(const uint8_t* at, int) { return load<Words>(at); }
    static Sum add(Sum sum, Words w, Words x) { return add_product(sum, w, x); }
};

struct Bfloat16Dots {
    using Sum = Floats;
    using Input = bf16;
    using Row = bf16;
    static constexpr int INPUTS = 2;
#ifdef PG_AVX512
    static constexpr int PHASES = 1;
    static uint32_t word(const bf16* x, int) { return load<uint32_t>(x); }
    static Words weights(const uint8_t* at, int) { return load<Words>(at); }
    static Sum add(Sum sum, Words w, Words x) {
        return (Sum)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
    }
#else  // widened to float32: first the even inputs, then the odd ones
    static constexpr int PHASES = 2;
    static uint32_t word(const bf16* x, int phase) { return static_cast<uint32_t>(x[phase]) << 16; }
    static Words weights(const uint8_t* at, int phase) {
        const Words both = load<Words>(at);
        if (phase == 0) return both << 16;
        return added_now(both >> 16) << 16;  // two shifts, because a mask would take a register
    }
    static Sum add(Sum sum, Words w, Words x) { return add_product(sum, w, x); }
#endif
};

struct Int8Dots {
    using Sum = Ints;
    using Input = bf16;
    using Row = int8_t;
    static constexpr int INPUTS = 4;
    static Sum first(int32_t start) { return Sum{} + start; }
    static Ints total(Sum sum, int32_t) { return sum; }
#if defined(PG_AVX512)
    static constexpr int PHASES = 1;
    static uint32_t word(const int8_t* q, int) { return load<uint32_t>(q); }
    static Words weights(const uint8_t* at, int) { return load<Words>(at); }
    static Sum add(Sum sum, Words w, Words x) {
        return (Sum)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
    }
#elif defined(__AVX2__)  // as 16 bits, because sums of byte products do not fit there
    static constexpr int PHASES = 2;
    static uint32_t word(const int8_t* q, int phase) {
        const int16_t two[2] = {q[phase], q[phase + 2]};
        return load<uint32_t>(two);
    }
    static Words weights(const uint8_t* at, int phase) {
        return phase == 0 ? load<Words>(at) & 0x00ff00ffu : (Words)(load<Shorts>(at) >> 8);
    }
    static Sum add(Sum sum, Words w, Words x) {
        return added_now(sum + (Sum)_mm256_madd_epi16((__m256i)w, (__m256i)x));
    }
#else
    static constexpr int PHASES = 4;
    static uint32_t word(const int8_t* q, int phase) { return static_cast<uint32_t>(q[phase]); }
    static Words weights(const uint8_t* at, int phase) { return load<Words>(at) >> (8 * phase) & 0xffu; }
    static Sum add(Sum sum, Words w, Words x) { return sum + (Sum)(w * x); }
#endif
};

struct Int4Dots {
    using Input = bf16;
    using Row = int8_t;
    static constexpr int INPUTS = 8;
#if defined(PG_AVX512) || defined(__AVX2__)
    static constexpr int PHASES = 2;
    static uint32_t word(const int8_t* q, int phase) { return load<uint32_t>(q + 4 * phase); }
    static Words weights(const uint8_t* at, int phase) {
        return load<Words>(at) >> (4 * phase) & 0x0f0f0f0fu;
    }
#else
    static constexpr int PHASES = 8;
    static uint32_t word(const int8_t* q, int phase) { return static_cast<uint32_t>(q[phase]); }
    static Words weights(const uint8_t* at, int phase) {
        return load<Words>(at) >> (8 * (phase % 4) + 4 * (phase / 4)) & 0xfu;
    }
#endif
#if defined(__AVX2__) && !defined(PG_AVX512)
    // 16 bits: a group of 32 inputs adds up to at most 16 * 15 * 127.
    using Sum = Shorts;
    static Sum add(Sum sum, Words w, Words x) {
        return added_now(sum + (Sum)_mm256_maddubs_epi16((__m256i)w, (__m256i)x));
    }
    static Sum first(int32_t) { return Sum{}; }
    static Ints total(Sum sum, int32_t start) {
        return (Ints)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1)) + start;
    }
#else
    using Sum = Ints;
    static Sum add(Sum sum, Words w, Words x) { return Int8Dots::add(sum, w, x); }
    static Sum first(int32_t start) { return Int8Dots::first(start); }
    static Ints total(Sum sum, int32_t) { return sum; }
#endif
};

}  // namespace
