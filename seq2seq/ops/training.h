// What training does on CPUs between its matmuls: residual connections with dropout and norm, the loss, attention.

#pragma once

#include "attend_sentences.h"
#include "threads.h"

namespace {

// Steele et al., 2014, SplitMix64.
inline uint64_t mixed(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// What dropout multiplies the elements of a row by: `keep_scale`, or 0 where 16 random bits are below `dropped`. `out`
// has room for an even number of them. The same row and seed always give the same factors.
inline void draw(uint64_t seed, int64_t row, int64_t columns, int64_t dropped, float keep_scale, float* out) {
    if (dropped <= 0) {
        std::fill_n(out, columns, keep_scale);
        return;
    }
    constexpr uint64_t golden = 0x9e3779b97f4a7c15u;
    const uint64_t key = mixed(mixed(seed + golden) + uint64_t(row) * golden);
    const uint32_t before = uint32_t(key), between = uint32_t(key >> 32), least = uint32_t(dropped);
    const int64_t half = (columns + 1) / 2;
    for (int64_t i = 0; i < half; i++) {
        // Appleby's finalizer of MurmurHash3.
        uint32_t x = uint32_t(i) * uint32_t(golden >> 32) + before;
        x = (x ^ (x >> 16)) * 0x85ebca6bu;
        x = ((x ^ (x >> 13)) + between) * 0xc2b2ae35u;
        x ^= x >> 16;
        out[i] = (x & 0xffff) < least ? 0.0f : keep_scale;
        out[half + i] = (x >> 16) < least ? 0.0f : keep_scale;
    }
}

// Calls `compute` with the number of each row, and with memory for `room` floats; each part of `some` rows is computed
// row after row.
template <class Compute>
void for_each_row(int64_t rows, int64_t some, int64_t room, int64_t threads, Compute compute) {
    parallel_for(parts_of(rows, some), threads, [=](int64_t part) {
        const auto numbers = uninitialised<float>(room);
        for (int64_t row = part * some; row < std::min(rows, (part + 1) * some); row++) compute(row, numbers.get());
    }, 2);
}

// total = x + dropout(y), out = LayerNorm(total).
template <class T>
void residual_norm(const T* x, const T* y, const float* weight, const float* bias, const int64_t* seed, T* out, T* total,
                   int64_t rows, int64_t columns, int64_t dropped, float keep_scale, float epsilon, int64_t threads) {
    for_each_row(rows, 64, 2 * columns + 1, threads, [=](int64_t row, float* found) {
        const T *own_x = x + row * columns, *own_y = y + row * columns;
        T* sums = total + row * columns;
        float* factors = found + columns;
        draw(uint64_t(*seed), row, columns, dropped, keep_scale, factors);
#pragma omp simd
        for (int64_t i = 0; i < columns; i++) found[i] = widen(own_x[i]) + widen(own_y[i]) * factors[i];
        narrow_row(found, sums, columns);
        // Rounded, as the backward pass will read it.
        if (!std::is_same_v<T, float>)
            for (int64_t i = 0; i < columns; i++) found[i] = widen(sums[i]);
        const Moments of(found, columns, epsilon);
#pragma omp simd
        for (int64_t i = 0; i < columns; i++) found[i] = (found[i] - of.mean) * of.scale * weight[i] + bias[i];
        narrow_row(found, out + row * columns, columns);
    });
}

// The gradients of x and y; `sums` [rows / some, 2, columns], rounded up, receive those of weight and bias, each added
// up over `some` rows in a fixed order.
template <class T>
void residual_norm_gradients(const T* d_out, const T* total, const float* weight, const int64_t* seed, T* d_x, T* d_y,
                             float* sums, int64_t rows, int64_t columns, int64_t some, int64_t dropped,
                             float keep_scale, float epsilon, int64_t threads) {
    for_each_row(rows, some, 3 * columns + 1, threads, [=](int64_t row, float* normed) {
        const T *own_out = d_out + row * columns, *own_total = total + row * columns;
        float *gradient = normed + columns, *factors = gradient + columns;
        float *d_weight = sums + row / some * 2 * columns, *d_bias = d_weight + columns;
        if (row % some == 0) std::fill_n(d_weight, 2 * columns, 0.0f);
        for (int64_t i = 0; i < columns; i++) normed[i] = widen(own_total[i]);
        const Moments of(normed, columns, epsilon);
        float mean = 0.0f, along = 0.0f;
#pragma omp simd reduction(+ : mean, along)
        for (int64_t i = 0; i < columns; i++) {
            const float own = widen(own_out[i]);
            normed[i] = (normed[i] - of.mean) * of.scale;
            d_weight[i] += own * normed[i];
            d_bias[i] += own;
            gradient[i] = own * weight[i];
            mean += gradient[i];
            along += gradient[i] * normed[i];
        }
        mean /= float(columns), along /= float(columns);
#pragma omp simd
        for (int64_t i = 0; i < columns; i++) gradient[i] = (gradient[i] - mean - normed[i] * along) * of.scale;
        narrow_row(gradient, d_x + row * columns, columns);
        draw(uint64_t(*seed), row, columns, dropped, keep_scale, factors);
        for (int64_t i = 0; i < columns; i++) gradient[i] *= factors[i];
        narrow_row(gradient, d_y + row * columns, columns);
    });
}

// Rows of logits become softmax(logits) - confidence · onehot(target), in place; `nll` receives -log p(target), `lse`
// the log-sum-exp. All are zero for a target below 0, which stands for none; others must be in the vocabulary.
template <class T>
void logits_to_gradients(T* logits, const int64_t* targets, float* nll, float* lse, int64_t rows, int64_t vocabulary,
                         float confidence, int64_t threads) {
    for_each_row(rows, 8, vocabulary, threads, [=](int64_t row, float* found) {
        T* own = logits + row * vocabulary;
        const int64_t target = targets[row];
        nll[row] = lse[row] = 0.0f;
        if (target < 0) {
            std::fill_n(own, vocabulary, T{});
            return;
        }
        const float most = largest(own, vocabulary);
        float total = 0.0f;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < vocabulary; i++)
            total += found[i] = exponential(widen(own[i]) - most);
        lse[row] = most + std::log(total);
        nll[row] = lse[row] - widen(own[target]);
        const float share = 1.0f / total;
        for (int64_t i = 0; i < vocabulary; i++) found[i] *= share;
        found[target] -= confidence;
        narrow_row(found, own, vocabulary);
    });
}

// Packed sentences, and how their projections lie in memory: queries at the start of rows of `query_row` numbers; keys
// from `first_key` on, and then values, in rows of `key_row` numbers, which may be the same rows.
struct Sentences {
    const int32_t *cu_queries, *cu_keys;
    int64_t heads, d_k, d_v, query_row, first_key, key_row;

    template <class T>
    Rows<T> queries(T* rows, int64_t number) const {
        return part(rows, cu_queries, query_row, number, d_k);
    }
    template <class T>
    Rows<T> keys(T* rows, int64_t number) const {
        return part(rows + first_key, cu_keys, key_row, number, d_k);
    }
    template <class T>
    Rows<T> values(T* rows, int64_t number) const {
        return part(rows + first_key + heads * d_k, cu_keys, key_row, number, d_v);
    }
    template <class T>
    Rows<T> outputs(T* rows, int64_t number) const {
        return part(rows, cu_queries, heads * d_v, number, d_v);
    }

  private:
    // The rows of a sentence's head; `number` counts the heads of all sentences.
    template <class T>
    Rows<T> part(T* rows, const int32_t* cu, int64_t row, int64_t number, int64_t width) const {
        const int32_t* own = cu + number / heads;
        return {rows + own[0] * row + number % heads * width, row, own[1] - own[0], width};
    }
};

template <class T>
void attend_sentences(T* out, const T* queries, const T* keys_values, const int32_t* cu_queries, const int32_t* cu_keys,
                      int64_t sentences, int64_t heads, int64_t d_k, int64_t d_v, int64_t query_row, int64_t first_key,
                      int64_t key_row, int64_t causal, int64_t threads) {
    const Sentences all = {cu_queries, cu_keys, heads, d_k, d_v, query_row, first_key, key_row};
    parallel_for(sentences * heads, threads, [=](int64_t i) {
        attend_sentence(all.queries(queries, i), all.keys(keys_values, i), all.values(keys_values, i),
                        all.outputs(out, i), causal != 0);
    }, 2);
}

template <class T>
void gradients_of_sentences(T* d_queries, T* d_keys_values, const T* d_out, const T* queries, const T* keys_values,
                            const int32_t* cu_queries, const int32_t* cu_keys, int64_t sentences, int64_t heads,
                            int64_t d_k, int64_t d_v, int64_t query_row, int64_t first_key, int64_t key_row,
                            int64_t causal, int64_t threads) {
    const Sentences all = {cu_queries, cu_keys, heads, d_k, d_v, query_row, first_key, key_row};
    parallel_for(sentences * heads, threads, [=](int64_t i) {
        sentence_gradients(all.queries(queries, i), all.keys(keys_values, i), all.values(keys_values, i),
                           all.outputs(d_out, i), all.queries(d_queries, i), all.keys(d_keys_values, i),
                           all.values(d_keys_values, i), causal != 0);
    }, 2);
}

}  // namespace
