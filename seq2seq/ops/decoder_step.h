// All layers of a Transformer decoder for one step of a few hypotheses: model/decoder_layer.py, in one call.

#pragma once

#include "attend.h"

namespace {

struct Norm {
    const float* weight;
    const float* bias;
};

struct DecoderLayer {
    Linear self_query, self_key_value, self_output, cross_query, cross_output, inner, outer;
    Norm self_norm, cross_norm, feed_forward_norm;
};

// What all layers have in common. Hypothesis r attends to the rows in list r of `pasts`, and to those in the list of
// its source sentence; its own new row of keys and values is `filled` + r.
struct Step {
    int64_t rows, filled, heads, d_k, d_v;
    bool norm_first;
    const int32_t* pasts;
    int64_t steps;
    const int32_t* sources;
    const int32_t* source_of;
    int64_t longest, threads;
};

template <class Sublayer>
void residual(std::vector<float>& x, const Norm& norm, int64_t rows, bool norm_first, Sublayer sublayer) {
    const int64_t columns = int64_t(x.size()) / rows;
    std::vector<float> given(x), found(x.size());
    const auto normalise = [&](const std::vector<float>& from, std::vector<float>& to) {
        for (int64_t start = 0; start < int64_t(x.size()); start += columns)
            norm_row(&from[start], norm.weight, norm.bias, &to[start], columns);
    };
    if (norm_first) normalise(x, given);
    sublayer(given.data(), found.data());
    for (size_t i = 0; i < x.size(); i++) found[i] += x[i];
    if (norm_first)
        x.swap(found);
    else
        normalise(found, x);
}

// `target` and `source` are the tables of keys and values; the step's own are added to those of the target.
template <class T>
void decoder_layer(const DecoderLayer& layer, const Step& step, T* target, const T* source, std::vector<float>& x) {
    const int64_t rows = step.rows, keys = step.heads * step.d_k, values = step.heads * step.d_v;
    std::vector<float> queries(rows * keys), keys_values(rows * (keys + values)), attended(rows * values);
    const auto attend = [&](const T* table, const int32_t* lists, const int32_t* list_of, int64_t longest) {
        attend_rows(queries.data(), table, lists, list_of, attended.data(), 0, rows, longest, step.heads, step.d_k,
                    step.d_v);
    };
    residual(x, layer.self_norm, rows, step.norm_first, [&](const float* given, float* out) {
        linear(layer.self_query, given, queries.data(), rows, step.threads);
        linear(layer.self_key_value, given, keys_values.data(), rows, step.threads);
        T* own = target + step.filled * (keys + values);
        for (size_t i = 0; i < keys_values.size(); i++) narrow(keys_values[i], own[i]);
        attend(target, step.pasts, nullptr, step.steps);
        linear(layer.self_output, attended.data(), out, rows, step.threads);
    });
    residual(x, layer.cross_norm, rows, step.norm_first, [&](const float* given, float* out) {
        linear(layer.cross_query, given, queries.data(), rows, step.threads);
        attend(source, step.sources, step.source_of, step.longest);
        linear(layer.cross_output, attended.data(), out, rows, step.threads);
    });
    residual(x, layer.feed_forward_norm, rows, step.norm_first, [&](const float* given, float* out) {
        std::vector<float> inner(rows * layer.inner.outputs);
        linear(layer.inner, given, inner.data(), rows, step.threads, true);
        linear(layer.outer, inner.data(), out, rows, step.threads);
    });
}

}  // namespace
