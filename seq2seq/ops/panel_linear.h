// Linear layers for any number of rows, from weights that are laid out in the order in which they are read.
//
// Each row is computed by itself, in a fixed order: its result does not depend on the other rows.

#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>
#include <type_traits>

#include "threads.h"
#include "tiles.h"

namespace {

// A layer as panel_linear.py lays it out: words of 32 bits [outputs / panel, groups, panel], each with one weight in
// float32, two in bfloat16, four in int8, for as many inputs. In int8, `scales` are the step sizes of each output's
// weights, and `zeros` is what the number that stands for zero adds to its sum. All are padded with zeros to whole
// panels, the inputs to whole groups.
struct Linear {
    int64_t format;
    const uint32_t* weight;
    const float* bias;
    const float* scales;
    const int32_t* zeros;
    int64_t inputs, outputs, levels;
};
enum Format { in_float32, in_bfloat16, in_int8 };

// How many weights a layer must have, counted once for every sixteen rows, for it to be worth waking other threads.
constexpr int64_t many = 1 << 19;
// How many bytes ahead weights are prefetched: hardware prefetchers only look ahead within a page.
constexpr int64_t ahead = 8192;

// The formats: what a row is stored as, and how the products of a word's weights with as many inputs are accumulated.
struct Float32 {
    using Row = float;
    using Sum = float;
    static constexpr int64_t group = 1;
    static constexpr bool tiled = false;
    static wide_floats add(wide_floats sums, const Row* x, wide_words weights) {
        return add_product(sums, spread(x[0]), (wide_floats)weights);
    }
};

struct Bfloat16 {
    using Row = std::conditional_t<adds_pairs, bfloat16, float>;
    using Sum = float;
    static constexpr int64_t group = 2;
    static constexpr bool tiled = false;
    static wide_floats add(wide_floats sums, const Row* x, wide_words weights) {
        return add_products_of_pairs(sums, x, weights);
    }
};

struct Int8 {
    using Row = uint8_t;
    using Sum = int32_t;
    static constexpr int64_t group = 4;
    static constexpr bool tiled = false;
    static wide_ints add(wide_ints sums, const Row* x, wide_words weights) {
        return add_products_of_bytes(sums, x, weights);
    }
};

struct Bfloat16Tiles : Bfloat16 {
    using Row = bfloat16;
    static constexpr bool tiled = true;
};

struct Int8Tiles : Int8 {
    static constexpr bool tiled = true;
};

// Calls `compute` with the type above for a layer's format.
template <class Compute>
void for_format(const Linear& layer, Compute compute) {
    switch (layer.format) {
        case in_float32: return compute(Float32());
        case in_bfloat16: return has_amx() ? compute(Bfloat16Tiles()) : compute(Bfloat16());
        case in_int8: return has_amx() ? compute(Int8Tiles()) : compute(Int8());
    }
}

template <class Format>
int64_t groups_of(const Linear& layer) {
    constexpr int64_t whole = Format::group == 1 ? 1 : tile * Format::group;
    return rounded_up(layer.inputs, whole) / Format::group;
}

// The stride between rows, in numbers. Twelve rows that are whole pages apart would conflict in the cache.
template <class Format>
int64_t stride_of(const Linear& layer) {
    constexpr int64_t line = 64 / sizeof(typename Format::Row);
    return groups_of<Format>(layer) * Format::group + (Format::tiled ? 0 : line);
}

// Input rows as a layer's matmul reads them: in int8, rounded to steps, whose sizes are in `steps`.
class LayerInput {
  public:
    template <class X>
    LayerInput(const Linear& layer, const X* x, int64_t rows) : rows(rows), steps(layer.format == in_int8 ? rows : 0) {
        for_format(layer, [&](auto format) { write<decltype(format)>(layer, x); });
    }

    template <class Format>
    const typename Format::Row* values() const {
        return reinterpret_cast<const typename Format::Row*>(bytes.get());
    }

    float step(int64_t row) const { return steps.empty() ? 1.0f : steps[row]; }

    const int64_t rows;

  private:
    template <class Format, class X>
    void write(const Linear& layer, const X* x) {
        using Row = typename Format::Row;
        const int64_t width = groups_of<Format>(layer) * Format::group, stride = stride_of<Format>(layer);
        const int64_t whole = rounded_up(rows, tile);
        bytes.reset(static_cast<char*>(::operator new(whole * stride * sizeof(Row), std::align_val_t(64))));
        Row* out = reinterpret_cast<Row*>(bytes.get());
        const auto wide = uninitialised<float>(layer.inputs);
        const auto own = uninitialised<Row>(Format::tiled ? width : 0);
        for (int64_t row = 0; row < rows; row++, x += layer.inputs) {
            const float* given = widened(x, wide.get(), layer.inputs);
            Row* found = Format::tiled ? own.get() : out + row * stride;
            if constexpr (std::is_same_v<Row, uint8_t>)
                steps[row] = round_row(given, found, layer.inputs, layer.levels);
            else
                narrow_row(given, found, layer.inputs);
            std::memset(found + layer.inputs, 0, (width - layer.inputs) * sizeof(Row));
            if constexpr (Format::tiled) {
                // Tile after tile, in the order in which they are read.
                constexpr int64_t part = tile * Format::group;
                Row* tiles = out + row / tile * tile * width + row % tile * part;
                for (int64_t i = 0; i < width; i += part) std::copy_n(found + i, part, tiles + i * tile);
            }
        }
    }

    static const float* widened(const float* x, float*, int64_t) { return x; }

    static const float* widened(const bfloat16* x, float* wide, int64_t columns) {
        for (int64_t i = 0; i < columns; i++) wide[i] = widen(x[i]);
        return wide;
    }

    struct Delete {
        void operator()(char* memory) const { ::operator delete(memory, std::align_val_t(64)); }
    };
    std::vector<float> steps;
    std::unique_ptr<char, Delete> bytes;
};

// Vectors per panel.
constexpr int vectors = panel / lanes;

// The products of some rows with a panel, summed over inputs: [rows, panel].
template <class Format, int rows>
void multiply(const typename Format::Row* x, int64_t stride, const uint32_t* weight, int64_t groups,
              typename Format::Sum* found) {
    using Sums = std::conditional_t<std::is_same_v<typename Format::Sum, float>, wide_floats, wide_ints>;
    if constexpr (Format::tiled) {
        multiply_tiles<rows == 2 * tile>(x, weight, groups, found);
    } else {
        Sums sums[rows][vectors] = {};
        for (int64_t i = 0; i < groups; i++, weight += panel) {
            wide_words words[vectors];
            for (int v = 0; v < vectors; v++) {
                words[v] = load_wide<wide_words>(weight + v * lanes);
                // Where a CPU has sixteen registers, all are needed for the sums.
                if constexpr (vectors == 2) words[v] = in_register(words[v]);
            }
            prefetch(weight + ahead / 4, panel);
#pragma GCC unroll 16
            for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
                for (int v = 0; v < vectors; v++)
                    sums[row][v] = Format::add(sums[row][v], x + row * stride + i * Format::group, words[v]);
        }
        std::memcpy(found, sums, sizeof sums);
    }
}

// What a panel's outputs are computed from besides these sums; read before them, since it may lie beyond the caches.
struct Beside {
    wide_floats bias[vectors], scales[vectors];
    wide_ints zeros[vectors];

    Beside(const Linear& layer, int64_t first) {
        for (int v = 0; v < vectors; v++) {
            bias[v] = load_wide<wide_floats>(layer.bias + first + v * lanes);
            if (!layer.scales) continue;
            scales[v] = load_wide<wide_floats>(layer.scales + first + v * lanes);
            zeros[v] = load_wide<wide_ints>(layer.zeros + first + v * lanes);
        }
    }

    wide_floats value(const float* sums, float, int v) const { return load_wide<wide_floats>(sums) + bias[v]; }

    wide_floats value(const int32_t* sums, float step, int v) const {
        const wide_ints wanted = load_wide<wide_ints>(sums) - zeros[v];
        return __builtin_convertvector(wanted, wide_floats) * (scales[v] * step) + bias[v];
    }
};

template <class Sum, class Out>
__attribute__((always_inline)) inline void finish_row(const Beside& beside, const Sum* sums, float step, Out* out,
                                                      int64_t count, bool relu) {
    Out all[panel], *found = count == panel ? out : all;
    const wide_floats least = relu ? wide_floats{} : wide_floats{} - infinity;
    for (int v = 0; v < vectors; v++) {
        const wide_floats value = beside.value(sums + v * lanes, step, v);
        store_wide(value < least ? least : value, found + v * lanes);
    }
    if (found == all) std::copy_n(all, count, out);
}

// Calls `use` with the number of each row from `first` on, a multiple of `tile`, and its sums for a panel.
template <class Format, class Use>
void products(const Linear& layer, const LayerInput& given, int64_t start, int64_t first, int64_t end, Use use) {
    const int64_t groups = groups_of<Format>(layer), stride = stride_of<Format>(layer);
    const uint32_t* weight = layer.weight + start * groups;
    const auto at_once = [&](int64_t row, auto some) {
        alignas(64) typename Format::Sum sums[some * panel];
        multiply<Format, some>(given.values<Format>() + row * stride, stride, weight, groups, sums);
        for (int64_t i = 0; i < std::min<int64_t>(some, end - row); i++) use(row + i, sums + i * panel);
    };
    // As many rows as registers can hold the sums of: 32 registers with 512 bits, else 16.
    if constexpr (Format::tiled)
        by_rows<2 * tile, tile>(first, rounded_up(end, tile), at_once);
    else if constexpr (vectors == 2)
        by_rows<12, 8, 4, 2, 1>(first, end, at_once);
    else
        by_rows<3, 2, 1>(first, end, at_once);
}

// x·Wᵀ + b; with `relu`, followed by ReLU.
template <class Out>
void linear(const Linear& layer, const LayerInput& given, Out* out, int64_t threads, bool relu = false) {
    for_format(layer, [&](auto format) {
        using F = decltype(format);
        const bool worth_it = layer.inputs * layer.outputs >= many / std::max<int64_t>(given.rows / 16, 1);
        parallel_ranges(parts_of(layer.outputs, panel), worth_it ? threads : 1, [&](int64_t first, int64_t end) {
            const TileConfig tiles(F::tiled, given.rows);
            for (int64_t start = first * panel; start < std::min(end * panel, layer.outputs); start += panel) {
                const Beside beside(layer, start);
                const int64_t count = std::min(panel, layer.outputs - start);
                products<F>(layer, given, start, 0, given.rows, [&](int64_t row, const auto* sums) {
                    finish_row(beside, sums, given.step(row), out + row * layer.outputs + start, count, relu);
                });
            }
        });
    });
}

}  // namespace
