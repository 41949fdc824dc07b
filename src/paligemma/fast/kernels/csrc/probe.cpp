// The limits of this machine: bytes read from memory and matrix operations per second. Benchmarks
// compare their figures with these, measured in the same run.
#include "common.h"

#include <chrono>

namespace {
// Sums of the vector units' peak: enough to hide the latency of an operation. They differ from the start,
// or a compiler would compute one for all.
constexpr int CHAINS = 12;

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
}  // namespace

// Bytes per second when `threads` threads read `bytes` (many times the caches) once, in four streams.
extern "C" double paligemma_read_bandwidth(const void* memory, int64_t bytes, int threads) {
    const double begin = seconds();
    uint64_t total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        const int64_t share = bytes / threads / 1024 * 1024, quarter = share / 4;
        const char* start = static_cast<const char*>(memory) + share * omp_get_thread_num();
#ifdef PG_AVX512
        __m512i sums[4] = {};
        for (int64_t i = 0; i + 64 <= quarter; i += 64)
            for (int s = 0; s < 4; s++) {
                const char* at = start + s * quarter + i;
                _mm_prefetch(at + 2048, _MM_HINT_T0);
                sums[s] = _mm512_add_epi64(sums[s], _mm512_loadu_si512(at));
            }
        for (auto sum : sums) total += static_cast<uint64_t>(_mm512_reduce_add_epi64(sum));
#else
        const uint64_t* words = reinterpret_cast<const uint64_t*>(start);
        for (int64_t i = 0; i < quarter * 4 / 8; i++) total += words[i];
#endif
    }
    volatile uint64_t kept = total;  // so that the compiler keeps the loop
    (void)kept;
    return static_cast<double>(bytes) / (seconds() - begin);
}

// bfloat16 operations per second of the matrix units (or, without any, float32 of the vector units)
// when nothing has to be loaded.
extern "C" double paligemma_matrix_peak(int64_t steps, int threads) {
    const double begin = seconds();
    double operations = 0;
#pragma omp parallel num_threads(threads) reduction(+ : operations)
    {
#ifdef PG_AMX
        struct alignas(64) { uint8_t bytes[64] = {}; } config;
        config.bytes[0] = 1;
        for (int t = 0; t < 8; t++) {
            config.bytes[16 + 2 * t] = 64;
            config.bytes[48 + t] = 16;
        }
        _tile_loadconfig(&config);
        _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);
        for (int64_t s = 0; s < steps; s++) {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_release();
        operations += 4.0 * 16 * 16 * 32 * 2 * static_cast<double>(steps);
#elif defined(PG_AVX512)
        __m512 sums[CHAINS];
        for (int i = 0; i < CHAINS; i++) sums[i] = _mm512_set1_ps(static_cast<float>(i));
        const __m512bh x = (__m512bh)_mm512_set1_epi32(static_cast<int>(steps));
        for (int64_t s = 0; s < steps; s++)
#pragma GCC unroll 16
            for (auto& sum : sums) sum = _mm512_dpbf16_ps(sum, x, x);
        volatile float kept = 0;
        for (auto sum : sums) kept = kept + _mm512_reduce_add_ps(sum);
        operations += CHAINS * 32.0 * 2 * static_cast<double>(steps);
#else
        constexpr int WIDTH = 8;
        float sums[CHAINS][WIDTH];
        for (int i = 0; i < CHAINS * WIDTH; i++) sums[i / WIDTH][i % WIDTH] = static_cast<float>(i);
        const float x = 1.0f / static_cast<float>(steps);
        for (int64_t s = 0; s < steps; s++)
            for (auto& sum : sums)
                for (float& lane : sum) lane = lane * x + x;
        volatile float kept = 0;
        for (auto& sum : sums)
            for (float lane : sum) kept = kept + lane;
        operations += CHAINS * WIDTH * 2.0 * static_cast<double>(steps);
#endif
    }
    return operations / (seconds() - begin);
}
