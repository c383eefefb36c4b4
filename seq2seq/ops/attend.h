// Attention of queries to rows of keys and values anywhere in a table, on CPUs.

#pragma once

#include "panel_linear.h"

namespace {

inline wide_floats load_floats(const float* x) { return load_wide<wide_floats>(x); }

inline wide_floats load_floats(const bfloat16* x) {
    wide_words found;
    for (int64_t i = 0; i < lanes; i++) found[i] = uint32_t(x[i].bits) << 16;
    return (wide_floats)found;
}

template <int64_t count>
struct Part {
    typedef float floats __attribute__((vector_size(4 * count)));
};

inline float sum_of(Part<4>::floats x) { return (x[0] + x[2]) + (x[1] + x[3]); }

template <class Floats>
float sum_of(Floats x) {
    typename Part<sizeof x / 8>::floats halves[2];
    std::memcpy(halves, &x, sizeof x);
    return sum_of(halves[0] + halves[1]);
}

// Prefetches a part of a row that will be attended to next.
template <class T>
void ask_for_row(const T* keys_values, const int32_t* next, int64_t t, int64_t columns, int64_t first, int64_t count) {
    if (next && next[t] >= 0) prefetch(keys_values + next[t] * columns + first, count);
}

template <class T>
float dot(const float* x, const T* y, int64_t count) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) sum += x[i] * widen(y[i]);
    return sum;
}

// One query, heads of any width.
template <class Q, class T>
void attend_row(const Q* query, const T* keys_values, const int32_t* seen, int64_t count, const int32_t* next, Q* out,
                int64_t heads, int64_t d_k, int64_t d_v) {
    const int64_t keys = heads * d_k, values = heads * d_v;
    const float scale = 1.0f / std::sqrt(float(d_k));
    std::vector<float> scaled(keys), weights(heads * count), sums(values);
    for (int64_t i = 0; i < keys; i++) scaled[i] = widen(query[i]) * scale;
    for (int64_t t = 0; t < count; t++) {
        ask_for_row(keys_values, next, t, keys + values, 0, keys + values);
        for (int64_t head = 0; head < heads; head++) {
            const T* key = keys_values + seen[t] * (keys + values) + head * d_k;
            weights[head * count + t] = dot(&scaled[head * d_k], key, d_k);
        }
    }
    for (int64_t head = 0; head < heads; head++) {
        float* own = &weights[head * count];
        const float most = largest(own, count), sum = sum_of_exponentials(own, count, most);
        for (int64_t t = 0; t < count; t++) own[t] = exponential(own[t] - most) / sum;
    }
    for (int64_t t = 0; t < count; t++)
        for (int64_t head = 0; head < heads; head++) {
            const float weight = weights[head * count + t];
            const T* value = keys_values + seen[t] * (keys + values) + keys + head * d_v;
            float* sum = &sums[head * d_v];
            for (int64_t i = 0; i < d_v; i++) sum[i] += weight * widen(value[i]);
        }
    for (int64_t i = 0; i < values; i++) narrow(sums[i], out[i]);
}

// How many queries that share a list are computed together.
constexpr int64_t together = 4;

// Several queries that share a list, heads of this width: each row is read once for all of them.
template <int queries, int64_t width, class Q, class T>
void attend_together(const Q* query, const T* keys_values, const int32_t* seen, int64_t count, const int32_t* next,
                     Q* out, int64_t heads) {
    constexpr int64_t vectors = width / lanes;
    const float scale = 1.0f / std::sqrt(float(width));
    const int64_t keys = heads * width;
    // Weights are padded to whole vectors: the exponential of the padding is negligible.
    const int64_t filled = rounded_up(count, lanes);
    const auto weights = uninitialised<float>(queries * filled);
    for (int64_t head = 0; head < heads; head++) {
        wide_floats scaled[queries][vectors], sums[queries][vectors] = {};
        for (int q = 0; q < queries; q++)
            for (int v = 0; v < vectors; v++)
                scaled[q][v] = load_floats(query + q * keys + head * width + v * lanes) * scale;
        for (int64_t t = 0; t < count; t++) {
            ask_for_row(keys_values, next, t, 2 * keys, head * 2 * width, 2 * width);
            const T* key = keys_values + seen[t] * (2 * keys) + head * width;
            wide_floats products[queries] = {};
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) {
                const wide_floats part = load_floats(key + v * lanes);
#pragma GCC unroll 4
                for (int q = 0; q < queries; q++) products[q] = add_product(products[q], scaled[q][v], part);
            }
            for (int q = 0; q < queries; q++) weights[q * filled + t] = sum_of(products[q]);
        }
        float shares[queries];
        for (int q = 0; q < queries; q++) {
            float *own = weights.get() + q * filled, total = 0.0f;
            std::fill(own + count, own + filled, -infinity);
            const float most = largest(own, filled);
#pragma omp simd reduction(+ : total)
            for (int64_t t = 0; t < filled; t++) total += own[t] = exponential(own[t] - most);
            shares[q] = count > 0 ? 1.0f / total : 0.0f;
        }
        for (int64_t t = 0; t < count; t++) {
            const T* value = keys_values + seen[t] * (2 * keys) + keys + head * width;
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) {
                const wide_floats part = load_floats(value + v * lanes);
#pragma GCC unroll 4
                for (int q = 0; q < queries; q++)
                    sums[q][v] = add_product(sums[q][v], spread(weights[q * filled + t]), part);
            }
        }
        for (int q = 0; q < queries; q++)
            for (int v = 0; v < vectors; v++) {
                float parts[lanes];
                store_wide(sums[q][v] * shares[q], parts);
                for (int64_t i = 0; i < lanes; i++) narrow(parts[i], out[q * keys + head * width + v * lanes + i]);
            }
    }
}

// Attention of the queries from `first` to `end`: of query r to the rows in list `list_of`[r], or in list r if
// `list_of` is null; -1 ends a list shorter than `longest`.
template <class Q, class T>
void attend_rows(const Q* queries, const T* keys_values, const int32_t* lists, const int32_t* list_of, Q* out,
                 int64_t first, int64_t end, int64_t longest, int64_t heads, int64_t d_k, int64_t d_v) {
    const auto list = [=](int64_t row) { return lists + (list_of ? list_of[row] : row) * longest; };
    for (int64_t row = first, after; row < end; row = after) {
        const int32_t *seen = list(row), *next = nullptr;
        for (after = row + 1; after < end && after - row < together && list(after) == seen;) after++;
        if (after < end) next = list(after);
        int64_t count = 0;
        while (count < longest && seen[count] >= 0) count++;
        const Q* query = queries + row * heads * d_k;
        Q* found = out + row * heads * d_v;
        const auto of_width = [=](auto width) {
            // There are no more than `together` of them.
            by_rows<4, 3, 2, 1>(0, after - row, [=](int64_t, auto some) {
                attend_together<some, width>(query, keys_values, seen, count, next, found, heads);
            });
        };
        if (d_k == d_v && d_k == 32) of_width(std::integral_constant<int64_t, 32>());
        else if (d_k == d_v && d_k == 64) of_width(std::integral_constant<int64_t, 64>());
        else if (d_k == d_v && d_k == 128) of_width(std::integral_constant<int64_t, 128>());
        else
            for (; row < after; row++, query += heads * d_k, found += heads * d_v)
                attend_row(query, keys_values, seen, count, next, found, heads, d_k, d_v);
    }
}

}  // namespace
