// Vectors of 32-bit numbers, and the instructions that compilers do not generate from plain loops.

#pragma once

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <type_traits>

#include "rows.h"

namespace {

// How many 32-bit numbers a vector of this CPU holds.
#if defined(__AVX512BW__)
constexpr int64_t lanes = 16;
#elif defined(__AVX2__)
constexpr int64_t lanes = 8;
#else
constexpr int64_t lanes = 4;
#endif
typedef float wide_floats __attribute__((vector_size(4 * lanes)));
typedef int32_t wide_ints __attribute__((vector_size(4 * lanes)));
typedef uint32_t wide_words __attribute__((vector_size(4 * lanes)));

template <class Wide, class Number>
Wide load_wide(const Number* x) {
    static_assert(sizeof(Number) * lanes == sizeof(Wide));
    Wide found;
    std::memcpy(&found, x, sizeof found);
    return found;
}

inline void store_wide(wide_floats x, float* out) { std::memcpy(out, &x, sizeof x); }

// `narrow`, except that numbers close to zero may become zero.
inline void store_wide(wide_floats x, bfloat16* out) {
#if defined(__AVX512BW__) && defined(__AVX512BF16__)
    const __m256bh narrowed = _mm512_cvtneps_pbh((__m512)x);
    std::memcpy(out, &narrowed, sizeof narrowed);
#else
    for (int64_t i = 0; i < lanes; i++) narrow(x[i], out[i]);
#endif
}

inline void narrow_row(const float* x, float* out, int64_t columns) { std::memcpy(out, x, columns * sizeof(float)); }

inline void narrow_row(const float* x, bfloat16* out, int64_t columns) {
    int64_t i = 0;
    for (; i + lanes <= columns; i += lanes) store_wide(load_wide<wide_floats>(x + i), out + i);
    for (; i < columns; i++) narrow(x[i], out[i]);
}

template <class T>
void narrow_rows(const float* x, T* out, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows * columns; i += columns) narrow_row(x + i, out + i, columns);
}

// Otherwise compilers would read x from memory for each use, more often than a CPU can load.
template <class Wide>
Wide in_register(Wide x) {
#ifdef __AVX2__
    __asm__("" : "+v"(x));
#endif
    return x;
}

// Subtracting zero costs nothing.
inline wide_floats spread(float x) { return x - wide_floats{}; }

// sums + x·y, rounded once where the CPU can. Compilers decide that anew at each place, for some CPUs differently from
// place to place: a row's bits would then depend on how many rows are computed with it.
inline wide_floats add_product(wide_floats sums, wide_floats x, wide_floats y) {
#if defined(__AVX512BW__)
    return (wide_floats)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)sums);
#elif defined(__AVX2__) && defined(__FMA__)
    return (wide_floats)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)sums);
#elif defined(__FP_FAST_FMAF)
    for (int64_t i = 0; i < lanes; i++) sums[i] = __builtin_fmaf(x[i], y[i], sums[i]);
    return sums;
#else
    return sums + x * y;
#endif
}

// Rows become columns.
inline void transpose(wide_floats (&rows)[lanes]) {
#if defined(__AVX512BW__)
    // Rows i and i + 8 interleaved, four times over.
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = low + _mm512_set1_epi64(0x800000008);
#pragma GCC unroll 4
    for (int stage = 0; stage < 4; stage++) {
        __m512 mixed[16];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            mixed[2 * i] = _mm512_permutex2var_ps((__m512)rows[i], low, (__m512)rows[i + 8]);
            mixed[2 * i + 1] = _mm512_permutex2var_ps((__m512)rows[i], high, (__m512)rows[i + 8]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) rows[i] = (wide_floats)mixed[i];
    }
#else
    for (int64_t i = 0; i < lanes; i++)
        for (int64_t j = 0; j < i; j++) {
            const float kept = rows[i][j];
            rows[i][j] = rows[j][i], rows[j][i] = kept;
        }
#endif
}

// Whether the CPU adds two products of bfloat16 numbers in one instruction.
#if defined(__AVX512BW__) && defined(__AVX512BF16__)
constexpr bool adds_pairs = true;
#else
constexpr bool adds_pairs = false;
#endif

// Adds the products of the two numbers at x with the two in each word.
template <class X>
wide_floats add_products_of_pairs(wide_floats sums, const X* x, wide_words weights) {
    sums = add_product(sums, spread(widen(x[0])), (wide_floats)(weights << 16));
    return add_product(sums, spread(widen(x[1])), (wide_floats)(weights & 0xffff0000u));
}

// The same for the two numbers in each word of x.
inline wide_floats add_products_of_pairs(wide_floats sums, wide_words x, wide_words y) {
#if defined(__AVX512BW__) && defined(__AVX512BF16__)
    return (wide_floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)x, (__m512bh)y);
#else
    sums = add_product(sums, (wide_floats)(x << 16), (wide_floats)(y << 16));
    return add_product(sums, (wide_floats)(x & 0xffff0000u), (wide_floats)(y & 0xffff0000u));
#endif
}

#if defined(__AVX512BW__) && defined(__AVX512BF16__)
inline wide_floats add_products_of_pairs(wide_floats sums, const bfloat16* x, wide_words weights) {
    uint32_t two;
    std::memcpy(&two, x, sizeof two);
    return add_products_of_pairs(sums, two | wide_words{}, weights);
}
#endif

// A word broadcast to all lanes, and products of words added: of one number each in float32, of two in bfloat16.
template <class T>
wide_floats spread_word(const float* word) {
    if constexpr (std::is_same_v<T, float>) return spread(*word);
    uint32_t bits;
    std::memcpy(&bits, word, sizeof bits);
    return (wide_floats)(bits | wide_words{});
}

template <class T>
wide_floats add_words(wide_floats sums, wide_floats x, wide_floats y) {
    if constexpr (std::is_same_v<T, float>) return add_product(sums, x, y);
    return add_products_of_pairs(sums, (wide_words)x, (wide_words)y);
}

// Whether sums of two products of bytes must fit in 16 bits.
#if (defined(__AVX512VNNI__) && defined(__AVX512BW__)) || (defined(__AVXVNNI__) && !defined(__AVX512BW__)) || \
    !defined(__AVX2__)
constexpr bool adds_in_16_bits = false;
#else
constexpr bool adds_in_16_bits = true;
#endif

// Adds the products of four unsigned bytes with the four in each word.
inline wide_ints add_products_of_bytes(wide_ints sums, const uint8_t* x, wide_words weights) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    return (wide_ints)_mm512_dpbusd_epi32((__m512i)sums, _mm512_set1_epi32(four), (__m512i)weights);
#elif defined(__AVX512BW__)
    const __m512i pairs = _mm512_maddubs_epi16(_mm512_set1_epi32(four), (__m512i)weights);
    return sums + (wide_ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVXVNNI__)
    return (wide_ints)_mm256_dpbusd_avx_epi32((__m256i)sums, _mm256_set1_epi32(four), (__m256i)weights);
#elif defined(__AVX2__)
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi32(four), (__m256i)weights);
    return sums + (wide_ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    for (int byte = 0; byte < 4; byte++)
        sums += int32_t(uint8_t(four >> (8 * byte))) * ((wide_ints)(weights << (24 - 8 * byte)) >> 24);
    return sums;
#endif
}

// Calls `compute` with the first row of each block of rows and, as a constant, its size: `size` first, then `smaller`.
template <int size, int... smaller, class Compute>
void by_rows(int64_t first, int64_t end, Compute compute) {
    for (; first + size <= end; first += size) compute(first, std::integral_constant<int, size>());
    if constexpr (sizeof...(smaller) > 0) by_rows<smaller...>(first, end, compute);
}

}  // namespace
