// What is done with one row between matmuls, on CPUs.
//
// Loops are written so that compilers vectorise them; nothing here depends on an instruction set. Each row is computed
// by itself, in a fixed order: its result does not depend on the other rows.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

struct bfloat16 {
    uint16_t bits;
};

inline float widen(float x) { return x; }

inline float widen(bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline void narrow(float x, float& out) { out = x; }

inline void narrow(float x, bfloat16& out) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    // Round to nearest, ties to even; NaN stays NaN.
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out.bits = uint16_t(x != x ? 0x7fc0 : rounded);
}

// Uninitialised memory for `count` numbers.
template <class T>
std::unique_ptr<T[]> uninitialised(int64_t count) {
    return std::unique_ptr<T[]>(new T[count]);
}

// Prefetches numbers that are needed soon and lie beyond the caches, where no hardware prefetcher expects them.
template <class T>
void prefetch(const T* numbers, int64_t count) {
    constexpr int64_t line = 64 / int64_t(sizeof(T)), first_cache = 3;
    for (int64_t i = 0; i < count; i += line) __builtin_prefetch(numbers + i, 0, first_cache);
}

// e^x for x <= 0, with a relative error of 2e-7; 0 below 1e-30: products with such numbers would be denormal, which take
// a hundred times as long.
inline float exponential(float x) {
    const bool tiny = x < -69.0f;
    x = tiny ? 0.0f : x;
    const float n = std::nearbyint(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const uint32_t bits = uint32_t(int32_t(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return tiny ? 0.0f : p * power;
}

template <class T>
float largest(const T* x, int64_t count) {
    float most = -infinity;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < count; i++) most = most < widen(x[i]) ? widen(x[i]) : most;
    return most;
}

template <class T>
float sum_of_exponentials(const T* x, int64_t count, float most) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) sum += exponential(widen(x[i]) - most);
    return sum;
}

// The mean of a row, and the reciprocal of its standard deviation.
struct Moments {
    float mean, scale;

    Moments(const float* x, int64_t columns, float epsilon) {
        float total = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < columns; i++) total += x[i];
        mean = total / float(columns);
        const float middle = mean;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < columns; i++) squares += (x[i] - middle) * (x[i] - middle);
        scale = 1.0f / std::sqrt(squares / float(columns) + epsilon);
    }
};

template <class T>
void norm_row(const float* x, const T* weight, const T* bias, T* out, int64_t columns) {
    const Moments of(x, columns, 1e-5f);
    for (int64_t i = 0; i < columns; i++)
        narrow((x[i] - of.mean) * of.scale * widen(weight[i]) + widen(bias[i]), out[i]);
}

// A row rounded to `levels` even steps on each side of zero, which is stored as levels + 1; returns the step size, NaN
// if anything in the row is NaN or infinite.
float round_row(const float* x, uint8_t* out, int64_t columns, int64_t levels) {
    // The bits of positive numbers sort as the numbers do, with infinity and NaN at the end.
    int32_t bits = 0;
#pragma omp simd reduction(max : bits)
    for (int64_t i = 0; i < columns; i++) {
        int32_t own;
        std::memcpy(&own, x + i, sizeof own);
        own &= 0x7fffffff;
        bits = bits < own ? own : bits;
    }
    float most;
    std::memcpy(&most, &bits, sizeof most);
    if (!(most < infinity)) {
        std::memset(out, 0, columns);
        return most - most;
    }
    const float step = std::fmax(most / float(levels), 1e-12f), inverse = 1.0f / step, zero = float(levels + 1);
    for (int64_t i = 0; i < columns; i++) out[i] = uint8_t(int32_t(std::nearbyint(x[i] * inverse) + zero));
    return step;
}

}  // namespace
