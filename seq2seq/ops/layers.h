// Layers of a Transformer in translation, each in one call; in Python: model/encoder.py and model/decoder_layer.py.

#pragma once

#include "attend.h"

namespace {

struct Norm {
    const float* weight;
    const float* bias;
};

struct EncoderLayer {
    Linear query, key_value, output, inner, outer;
    Norm attention_norm, feed_forward_norm;
};

struct DecoderLayer {
    Linear self_query, self_key_value, self_output, cross_query, cross_key_value, cross_output, inner, outer;
    Norm self_norm, cross_norm, feed_forward_norm;
};

// What all layers have in common.
struct Shape {
    int64_t heads, d_k, d_v;
    bool norm_first;
    int64_t threads;
    int64_t keys() const { return heads * d_k; }
    int64_t values() const { return heads * d_v; }
};

// Lists of rows that may be seen: row r sees those in list `list_of`[r], or in list r if `list_of` is null.
struct Lists {
    const int32_t* lists;
    const int32_t* list_of;
    int64_t longest;
    Lists from(int64_t row) const {
        return list_of ? Lists{lists, list_of + row, longest} : Lists{lists + row * longest, nullptr, longest};
    }
};

// Rows that go through a layer together: intermediate results stay in a core's cache.
constexpr int64_t rows_per_block = 96;

// Calls `compute` with the first row of each block and their number. Where there are few blocks, there are as many for
// each thread, of almost equal size; but below `fewest` rows for each, threads rather share the outputs of a layer.
template <class Compute>
void parallel_blocks(int64_t rows, int64_t threads, Compute compute) {
    constexpr int64_t fewest = 12, few = 4, several = 2, step = 4;
    int64_t blocks = parts_of(rows, rows_per_block);
    if (rows >= fewest * threads && blocks < few * threads) blocks = rounded_up(blocks, threads);
    const int64_t size = rounded_up(parts_of(rows, std::max(blocks, int64_t(1))), step);
    parallel_for(blocks ? parts_of(rows, size) : 0, threads, [&](int64_t number) {
        compute(number * size, std::min(size, rows - number * size));
    }, several);
}

inline void normalise(const Norm& norm, const float* x, float* out, int64_t rows, int64_t columns) {
    for (int64_t start = 0; start < rows * columns; start += columns)
        norm_row(x + start, norm.weight, norm.bias, out + start, columns);
}

// x += found; without `norm_first`, the norm follows. Overwrites `found`.
inline void add_residual(float* x, float* found, const Norm& norm, int64_t rows, int64_t columns, bool norm_first) {
    if (norm_first) {
        for (int64_t i = 0; i < rows * columns; i++) x[i] += found[i];
    } else {
        for (int64_t i = 0; i < rows * columns; i++) found[i] += x[i];
        normalise(norm, found, x, rows, columns);
    }
}

template <class Sublayer>
void residual(float* x, const Norm& norm, int64_t rows, int64_t columns, bool norm_first, Sublayer sublayer) {
    const auto given = uninitialised<float>(norm_first ? rows * columns : 0);
    const auto found = uninitialised<float>(rows * columns);
    if (norm_first) normalise(norm, x, given.get(), rows, columns);
    sublayer(norm_first ? given.get() : x, found.get());
    add_residual(x, found.get(), norm, rows, columns, norm_first);
}

template <class T>
void attend_and_project(const Linear& output, const Shape& shape, const float* queries, const T* table,
                        const Lists& seen, int64_t rows, float* out) {
    const auto attended = uninitialised<float>(rows * shape.values());
    attend_rows(queries, table, seen.lists, seen.list_of, attended.get(), 0, rows, seen.longest, shape.heads,
                shape.d_k, shape.d_v);
    linear(output, LayerInput(output, attended.get(), rows), out, shape.threads);
}

void feed_forward(const Linear& inner, const Linear& outer, const float* x, int64_t rows, float* out, int64_t threads) {
    const auto between = uninitialised<float>(rows * inner.outputs);
    linear(inner, LayerInput(inner, x, rows), between.get(), threads, true);
    linear(outer, LayerInput(outer, between.get(), rows), out, threads);
}

// `target` and `source` are tables of keys and values; those of these rows are written to the target, from `own` on.
template <class T>
void decoder_layer(const DecoderLayer& layer, const Shape& shape, T* target, T* own, const T* source,
                   const Lists& past, const Lists& of_source, float* x, int64_t rows, int64_t columns) {
    const auto queries = uninitialised<float>(rows * shape.keys());
    residual(x, layer.self_norm, rows, columns, shape.norm_first, [&](const float* given, float* out) {
        const LayerInput as_given(layer.self_query, given, rows);
        linear(layer.self_query, as_given, queries.get(), shape.threads);
        linear(layer.self_key_value, as_given, own, shape.threads);
        attend_and_project(layer.self_output, shape, queries.get(), target, past, rows, out);
    });
    residual(x, layer.cross_norm, rows, columns, shape.norm_first, [&](const float* given, float* out) {
        linear(layer.cross_query, LayerInput(layer.cross_query, given, rows), queries.get(), shape.threads);
        attend_and_project(layer.cross_output, shape, queries.get(), source, of_source, rows, out);
    });
    residual(x, layer.feed_forward_norm, rows, columns, shape.norm_first, [&](const float* given, float* out) {
        feed_forward(layer.inner, layer.outer, given, rows, out, shape.threads);
    });
}

// `queries` has room for the queries of all rows, `table` for their keys and values.
template <class T>
void encoder_layer(const EncoderLayer& layer, const Shape& shape, float* queries, T* table, const Lists& sentences,
                   float* x, int64_t all, int64_t columns) {
    parallel_blocks(all, shape.threads, [&](int64_t first, int64_t rows) {
        const auto normalised = uninitialised<float>(shape.norm_first ? rows * columns : 0);
        const float* given = x + first * columns;
        if (shape.norm_first) {
            normalise(layer.attention_norm, given, normalised.get(), rows, columns);
            given = normalised.get();
        }
        const LayerInput as_given(layer.query, given, rows);
        linear(layer.query, as_given, queries + first * shape.keys(), shape.threads);
        linear(layer.key_value, as_given, table + first * (shape.keys() + shape.values()), shape.threads);
    });
    parallel_blocks(all, shape.threads, [&](int64_t first, int64_t rows) {
        float* own = x + first * columns;
        const auto found = uninitialised<float>(rows * columns);
        attend_and_project(layer.output, shape, queries + first * shape.keys(), table, sentences.from(first), rows,
                           found.get());
        add_residual(own, found.get(), layer.attention_norm, rows, columns, shape.norm_first);
        residual(own, layer.feed_forward_norm, rows, columns, shape.norm_first, [&](const float* given, float* out) {
            feed_forward(layer.inner, layer.outer, given, rows, out, shape.threads);
        });
    });
}

}  // namespace
