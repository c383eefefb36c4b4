// Linear layers for a few rows, at the speed at which their weights come from memory.

#pragma once

#include <type_traits>

#include "rows.h"

namespace {

// How many outputs and how many rows are computed together.
constexpr int64_t panel = 32, together = 4;
// How many weights a layer must have for another thread to be worth waking.
constexpr int64_t many = 1 << 19;
// How many bytes before they are needed weights are asked for: processors by themselves look ahead within a page.
constexpr int64_t ahead = 16384;

inline void ask_for(const void* weights) { __builtin_prefetch(static_cast<const char*>(weights) + ahead); }

// A layer as few_rows.py lays it out: in float32 and bfloat16 in panels [outputs / panel, inputs, panel], the last one
// filled up; in int8 output by output, and `sums` are those of each.
struct Linear {
    int64_t format;
    const void* weight;
    const float* bias;
    const float* scales;
    const int32_t* sums;
    int64_t inputs, outputs, levels;
};
enum Format { in_float32, in_bfloat16, in_int8 };

template <int rows, class W>
void multiply_panel(const float* x, const W* weight, const float* bias, float* out, int64_t inputs, int64_t outputs,
                    int64_t count) {
    float sums[rows][panel];
    for (int row = 0; row < rows; row++)
        for (int64_t o = 0; o < panel; o++) sums[row][o] = bias[o];
    for (int64_t i = 0; i < inputs; i++) {
        for (int64_t o = 0; o < panel; o += 64 / int64_t(sizeof(W))) ask_for(weight + i * panel + o);
        for (int row = 0; row < rows; row++) {
            const float value = x[row * inputs + i];
#pragma omp simd
            for (int64_t o = 0; o < panel; o++) sums[row][o] += value * widen(weight[i * panel + o]);
        }
    }
    for (int row = 0; row < rows; row++)
        for (int64_t o = 0; o < count; o++) out[row * outputs + o] = sums[row][o];
}

// The sum over (x + zero)·w is the wanted one and `zero` times the sum of w.
template <int rows>
void multiply_int8(const uint8_t* x, const float* steps, const Linear& layer, float* out, int64_t output) {
    const int8_t* weight = static_cast<const int8_t*>(layer.weight) + output * layer.inputs;
    int32_t sums[rows] = {};
    for (int64_t i = 0; i < layer.inputs; i += 64) ask_for(weight + i);
    for (int64_t i = 0; i < layer.inputs; i++)
        for (int row = 0; row < rows; row++) sums[row] += int32_t(x[row * layer.inputs + i]) * int32_t(weight[i]);
    const int32_t zeros = int32_t(layer.levels + 1) * layer.sums[output];
    for (int row = 0; row < rows; row++)
        out[row * layer.outputs + output] =
            float(sums[row] - zeros) * layer.scales[output] * steps[row] + layer.bias[output];
}

// Calls `compute` with the number of the first row and, as a constant, how many there are, of each few rows.
template <class Compute>
void for_each_few(int64_t rows, Compute compute) {
    int64_t first = 0;
    for (; first + together <= rows; first += together) compute(first, std::integral_constant<int, together>());
    switch (rows - first) {
        case 3: return compute(first, std::integral_constant<int, 3>());
        case 2: return compute(first, std::integral_constant<int, 2>());
        case 1: return compute(first, std::integral_constant<int, 1>());
    }
}

template <class W>
void multiply(const Linear& layer, const float* x, float* out, int64_t rows, int64_t threads) {
    const W* weight = static_cast<const W*>(layer.weight);
#pragma omp parallel for num_threads(int(threads)) if (threads > 1 && layer.inputs * layer.outputs >= many)
    for (int64_t start = 0; start < layer.outputs; start += panel) {
        const int64_t left = layer.outputs - start, count = left < panel ? left : panel;
        for_each_few(rows, [=, &layer](int64_t first, auto some) {
            multiply_panel<some>(x + first * layer.inputs, weight + start * layer.inputs, layer.bias + start,
                                 out + first * layer.outputs + start, layer.inputs, layer.outputs, count);
        });
    }
}

void multiply_int8(const Linear& layer, const float* x, float* out, int64_t rows, int64_t threads) {
    std::vector<uint8_t> rounded(rows * layer.inputs);
    std::vector<float> steps(rows);
    for (int64_t row = 0; row < rows; row++)
        steps[row] = round_row(x + row * layer.inputs, &rounded[row * layer.inputs], layer.inputs, layer.levels);
#pragma omp parallel for num_threads(int(threads)) if (threads > 1 && layer.inputs * layer.outputs >= many)
    for (int64_t output = 0; output < layer.outputs; output++)
        for_each_few(rows, [&](int64_t first, auto some) {
            multiply_int8<some>(&rounded[first * layer.inputs], &steps[first], layer, out + first * layer.outputs,
                                output);
        });
}

// x·Wᵀ + b, and with `rectify` max(0, …) of it.
void linear(const Linear& layer, const float* x, float* out, int64_t rows, int64_t threads, bool rectify = false) {
    switch (layer.format) {
        case in_float32: multiply<float>(layer, x, out, rows, threads); break;
        case in_bfloat16: multiply<bfloat16>(layer, x, out, rows, threads); break;
        case in_int8: multiply_int8(layer, x, out, rows, threads); break;
    }
    if (rectify)
        for (int64_t i = 0; i < rows * layer.outputs; i++) out[i] = out[i] < 0.0f ? 0.0f : out[i];
}

}  // namespace
