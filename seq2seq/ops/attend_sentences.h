// Attention within packed sentences and its gradients, for training on CPUs: one head of one sentence at a time, in
// float32, with all that it needs in a core's cache.
//
// Shapes: L queries, S keys, E and V widths of a head in keys and in values. Rows of matrices here are padded to whole
// vectors. Queries are columns of weights and of scores, so that vectors run over queries.

#pragma once

#include <algorithm>
#include <type_traits>

#include "matrix.h"

namespace {

// Queries whose weights are in the cache at once.
constexpr int64_t queries_at_once = 64;

// One head's rows of a projection; `row` is the stride between rows.
template <class T>
struct Rows {
    T* first;
    int64_t row, count, width;
    Rows from(int64_t start, int64_t some) const { return {first + start * row, row, some, width}; }
};

// Rows in float32: not copied where they are in float32 already, in whole vectors.
template <class T>
Matrix as_rows(const Rows<const T>& from, Room& room) {
    if constexpr (std::is_same_v<T, float>)
        if (from.width % lanes == 0) return {const_cast<float*>(from.first), from.row};
    const Matrix found = room.rows(from.count, from.width);
    for (int64_t r = 0; r < from.count; r++) {
        const T* own = from.first + r * from.row;
        for (int64_t i = 0; i < from.width; i++) found[r][i] = widen(own[i]);
        std::fill(found[r] + from.width, found[r + 1], 0.0f);
    }
    return found;
}

// `count` rows as columns; those that pad the last vector are zeros.
inline Matrix as_columns(const Matrix& from, int64_t count, int64_t width, Room& room) {
    const Matrix found = room.rows(width, count);
    copy_transposed(from, count, width, found);
    return found;
}

template <class T>
void scale_and_store(const Matrix& from, float scale, const Rows<T>& to) {
    for (int64_t r = 0; r < to.count; r++) {
        for (int64_t i = 0; i < to.width; i++) from[r][i] *= scale;
        narrow_row(from[r], to.first + r * to.row, to.width);
    }
}

inline float scale_of(int64_t width) { return 1.0f / std::sqrt(float(width)); }

// softmax(q·kᵀ / √E) of the queries from `start` on, [S, L]; if `causal`, query l sees keys up to start + l only.
inline Matrix weights_of(const Matrix& queries_LE, const Matrix& keys_SE, int64_t width, int64_t start, int64_t count,
                         int64_t keys, bool causal, Room& room) {
    const Matrix weights = room.rows(keys, count), state = room.rows(2, count);
    const auto unseen = [=](int64_t s) { return causal ? std::clamp<int64_t>(s - start, 0, count) : 0; };
    matrix_product(keys_SE, as_columns(queries_LE, count, width, room), keys, width, count, weights);
    float *most = state[0], *totals = state[1];
    const float scale = scale_of(width);
    std::fill_n(most, weights.row, -infinity);
    std::fill_n(totals, weights.row, 0.0f);
    for (int64_t s = 0; s < keys; s++) {
        float* own = weights[s];
        for (int64_t l = 0; l < weights.row; l++) own[l] *= scale;
        std::fill_n(own, unseen(s), -infinity);
        for (int64_t l = 0; l < weights.row; l++) most[l] = most[l] < own[l] ? own[l] : most[l];
    }
    for (int64_t s = 0; s < keys; s++) {
        float* own = weights[s];
        for (int64_t l = 0; l < weights.row; l++) {
            own[l] = exponential(own[l] - most[l]);
            totals[l] += own[l];
        }
    }
    // Not multiplied by the reciprocal, whose error all weights of a query would share: their sum would not be 1.
    for (int64_t s = 0; s < keys; s++)
        for (int64_t l = 0; l < weights.row; l++) weights[s][l] /= totals[l];
    return weights;
}

// In place, the gradients of weights [S, L] become those of scores.
inline void softmax_gradients(const Matrix& weights, int64_t keys, const Matrix& gradients, float* means) {
    std::fill_n(means, weights.row, 0.0f);
    for (int64_t s = 0; s < keys; s++)
        for (int64_t l = 0; l < weights.row; l++) means[l] += weights[s][l] * gradients[s][l];
    for (int64_t s = 0; s < keys; s++)
        for (int64_t l = 0; l < weights.row; l++) gradients[s][l] = weights[s][l] * (gradients[s][l] - means[l]);
}

template <class T>
void attend_sentence(const Rows<const T>& q, const Rows<const T>& k, const Rows<const T>& v, const Rows<T>& out,
                     bool causal) {
    Room room;
    const Matrix keys_SE = as_rows(k, room), values_SV = as_rows(v, room);
    for (int64_t start = 0; start < q.count; start += queries_at_once) {
        Room meanwhile = room;
        const int64_t count = std::min(queries_at_once, q.count - start);
        const int64_t seen = causal ? std::min(k.count, start + count) : k.count;
        const Matrix queries_LE = as_rows(q.from(start, count), meanwhile);
        const Matrix weights_SL = weights_of(queries_LE, keys_SE, q.width, start, count, seen, causal, meanwhile);
        const Matrix out_LV = meanwhile.rows(count, v.width);
        matrix_product(weights_SL.transposed(), values_SV, count, seen, v.width, out_LV);
        scale_and_store(out_LV, 1.0f, out.from(start, count));
    }
}

// The gradients of queries, keys and values; the weights are recomputed rather than kept.
template <class T>
void sentence_gradients(const Rows<const T>& q, const Rows<const T>& k, const Rows<const T>& v,
                        const Rows<const T>& d_out, const Rows<T>& d_q, const Rows<T>& d_k, const Rows<T>& d_v,
                        bool causal) {
    Room room;
    const Matrix keys_SE = as_rows(k, room), values_SV = as_rows(v, room);
    const Matrix d_keys_SE = room.rows(k.count, k.width), d_values_SV = room.rows(k.count, v.width);
    std::fill_n(d_keys_SE.at, k.count * d_keys_SE.row, 0.0f);
    std::fill_n(d_values_SV.at, k.count * d_values_SV.row, 0.0f);
    for (int64_t start = 0; start < q.count; start += queries_at_once) {
        Room meanwhile = room;
        const int64_t count = std::min(queries_at_once, q.count - start);
        const int64_t seen = causal ? std::min(k.count, start + count) : k.count;
        const Matrix queries_LE = as_rows(q.from(start, count), meanwhile);
        const Matrix d_out_LV = as_rows(d_out.from(start, count), meanwhile);
        const Matrix weights_SL = weights_of(queries_LE, keys_SE, q.width, start, count, seen, causal, meanwhile);
        const Matrix d_scores_SL = meanwhile.rows(seen, count);
        matrix_product(values_SV, as_columns(d_out_LV, count, v.width, meanwhile), seen, v.width, count, d_scores_SL);
        softmax_gradients(weights_SL, seen, d_scores_SL, meanwhile.rows(1, count).at);
        const Matrix d_queries_LE = meanwhile.rows(count, q.width);
        matrix_product(d_scores_SL.transposed(), keys_SE, count, seen, q.width, d_queries_LE);
        scale_and_store(d_queries_LE, scale_of(q.width), d_q.from(start, count));
        matrix_product(d_scores_SL, queries_LE, seen, count, k.width, d_keys_SE, true);
        matrix_product(weights_SL, d_out_LV, seen, count, v.width, d_values_SV, true);
    }
    scale_and_store(d_keys_SE, scale_of(q.width), d_k);
    scale_and_store(d_values_SV, 1.0f, d_v);
}

}  // namespace
