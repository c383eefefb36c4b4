// Products of matrices in float32: small ones, of which all is in a core's cache, and large ones in parts that are.
//
// Elements are summed in one order, whatever the number of threads.

#pragma once

#include <algorithm>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr int64_t whole_vectors(int64_t count) { return (count + lanes - 1) / lanes * lanes; }

// A matrix in float32; element (i, j) lies at i * row + j * column.
struct Matrix {
    float* at;
    int64_t row, column = 1;
    float* operator[](int64_t i) const { return at + i * row; }
    Matrix from(int64_t i, int64_t j) const { return {at + i * row + j * column, row, column}; }
    Matrix transposed() const { return {at, column, row}; }
};

// Memory of a thread for what it computes meanwhile. It is kept: to ask for it takes as long as a small product.
class Room {
  public:
    Matrix rows(int64_t count, int64_t columns) {
        auto& all = kept();
        if (used == all.size()) all.emplace_back();
        auto& own = all[used++];
        const int64_t row = whole_vectors(columns);
        if (int64_t(own.size()) < count * row + lanes) own.resize(count * row + lanes);
        // A vector that lies in two lines of the cache takes twice the time.
        const uintptr_t line = 4 * lanes, begin = reinterpret_cast<uintptr_t>(own.data());
        return {reinterpret_cast<float*>((begin + line - 1) / line * line), row};
    }

  private:
    static std::vector<std::vector<float>>& kept() {
        thread_local std::vector<std::vector<float>> all;
        return all;
    }
    size_t used = 0;
};

template <int rows, int width>
void multiply_block(const Matrix& x, const Matrix& y, int64_t inner, const Matrix& out, bool add) {
    wide_floats sums[rows][width] = {};
    if (add)
        for (int r = 0; r < rows; r++)
            for (int w = 0; w < width; w++) sums[r][w] = load_wide<wide_floats>(out[r] + w * lanes);
    for (int64_t i = 0; i < inner; i++) {
        wide_floats parts[width];
        for (int w = 0; w < width; w++) parts[w] = in_register(load_wide<wide_floats>(y[i] + w * lanes));
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const wide_floats own = spread(x.at[r * x.row + i * x.column]);
#pragma GCC unroll 8
            for (int w = 0; w < width; w++) sums[r][w] = add_product(sums[r][w], own, parts[w]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < width; w++) store_wide(sums[r][w], out[r] + w * lanes);
}

// out [rows, columns] = x [rows, inner] · y [inner, columns], or added to what stands there.
inline void matrix_product(const Matrix& x, const Matrix& y, int64_t rows, int64_t inner, int64_t columns,
                           const Matrix& out, bool add = false) {
    // As many sums as fit into registers: 32 with 512 bits, else 16.
    constexpr bool has_32 = lanes == 16;
    const auto some_vectors = [&](int64_t vector, auto width) {
        const int64_t column = vector * lanes;
        const auto some_rows = [&](int64_t row, auto count) {
            multiply_block<count, width>(x.from(row, 0), y.from(0, column), inner, out.from(row, column), add);
        };
        constexpr int most = width == 1 ? 12 : 6;
        by_rows<has_32 ? most : most / 2, 3, 1>(0, rows, some_rows);
    };
    by_rows<has_32 ? 4 : 2, 2, 1>(0, (columns + lanes - 1) / lanes, some_vectors);
}

// What of a large product is in a core's cache together: rows of x, columns of y, and what is summed over.
constexpr int64_t rows_at_once = 96, columns_at_once = 256, inner_at_once = 512;
// How many rows before they are copied they are asked for.
constexpr int64_t rows_ahead = 16;
// Vectors of a row whose sums are in registers, times six rows.
constexpr int64_t strip_vectors = lanes == 16 ? 4 : 2, strip = strip_vectors * lanes;

// Columns of y strip by strip, [columns / strip, inner, strip], filled up with zeros.
inline void pack(const Matrix& y, int64_t inner, int64_t columns, float* out) {
    for (int64_t first = 0; first < columns; first += strip, out += inner * strip) {
        const int64_t count = std::min(strip, columns - first);
        if (count < strip) std::fill_n(out, inner * strip, 0.0f);
        if (y.column == 1) {
            for (int64_t i = 0; i < inner; i++) {
                ask_for(y.from(i + rows_ahead, first).at, count);
                std::copy_n(y.from(i, first).at, count, out + i * strip);
            }
            continue;
        }
        // Some at a time, so that of what is read or written lines of the cache are used whole while they are there.
        for (int64_t start = 0; start < inner; start += lanes)
            for (int64_t j = 0; j < count; j++)
                for (int64_t i = start; i < std::min(start + lanes, inner); i++)
                    out[i * strip + j] = *y.from(i, first + j).at;
    }
}

// What sums become: `bias` and what stands there are added, if wanted, then what is below zero becomes 0.
struct Finish {
    const float* bias;
    bool add, rectify;

    Finish from(int64_t column) const { return {bias ? bias + column : nullptr, add, rectify}; }

    // In a part of the products of a sum.
    Finish of_part(bool first, bool last) const { return {first ? bias : nullptr, add || !first, rectify && last}; }

    void operator()(const float* sums, float* out, int64_t count) const {
        int64_t i = 0;
        for (; i + lanes <= count; i += lanes) store_wide(finished<wide_floats>(sums, out, i), out + i);
        for (; i < count; i++) out[i] = finished<float>(sums, out, i);
    }

  private:
    template <class Wide>
    static Wide at(const float* numbers, int64_t i) {
        Wide found;
        std::memcpy(&found, numbers + i, sizeof found);
        return found;
    }

    template <class Wide>
    Wide finished(const float* sums, const float* out, int64_t i) const {
        Wide value = at<Wide>(sums, i);
        if (bias) value += at<Wide>(bias, i);
        if (add) value += at<Wide>(out, i);
        return rectify ? (value < Wide{} ? Wide{} : value) : value;
    }
};

template <int rows>
void multiply_strip(const Matrix& x, const float* y, int64_t inner, const Matrix& out, int64_t count,
                    const Finish& finish) {
    alignas(64) float sums[rows * strip];
    for (int64_t r = 0; r < rows; r++) ask_for(out[r], count);
    multiply_block<rows, strip_vectors>(x, {const_cast<float*>(y), strip}, inner, {sums, strip}, false);
    for (int64_t r = 0; r < rows; r++) finish(sums + r * strip, out[r], count);
}

// out [rows, columns] = x [rows, inner] · y, finished, of what is in a core's cache together.
inline void multiply_part(const Matrix& x, const Matrix& strips, int64_t rows, int64_t inner, int64_t columns,
                          const Matrix& out, const Finish& finish) {
    by_rows<6, 4, 2, 1>(0, rows, [&](int64_t row, auto some) {
        for (int64_t column = 0; column < columns; column += strip)
            multiply_strip<some>(x.from(row, 0), strips.at + column * inner, inner, out.from(row, column),
                                 std::min(strip, columns - column), finish.from(column));
    });
}

// The same in such parts.
inline void multiply_rows(const Matrix& x, const Matrix& y, int64_t rows, int64_t inner, int64_t columns,
                          const Matrix& out, const Finish& finish) {
    Room room;
    const Matrix strips = room.rows(1, inner_at_once * columns_at_once), block = room.rows(inner_at_once, rows_at_once);
    for (int64_t column = 0; column < columns; column += columns_at_once) {
        const int64_t wide = std::min(columns_at_once, columns - column);
        for (int64_t start = 0; start < inner; start += inner_at_once) {
            const int64_t deep = std::min(inner_at_once, inner - start);
            pack(y.from(start, column), deep, wide, strips.at);
            const Finish now = finish.from(column).of_part(start == 0, start + deep == inner);
            for (int64_t row = 0; row < rows; row += rows_at_once) {
                const int64_t high = std::min(rows_at_once, rows - row);
                Matrix given = x.from(row, start);
                if (x.column != 1) {
                    // Columns that are whole pages apart would be in each other's way.
                    for (int64_t i = 0; i < deep; i++) {
                        ask_for(given.at + (i + rows_ahead) * x.column, high);
                        std::copy_n(given.at + i * x.column, high, block[i]);
                    }
                    given = block.transposed();
                }
                multiply_part(given, strips, high, deep, wide, out.from(row, column), now);
            }
        }
    }
}

// The same, shared among threads in parts as near to squares as can be, as each copies its rows of x and columns of y. Of
// x and y, rows or columns lie together; no size is 0.
inline void large_product(const Matrix& x, const Matrix& y, int64_t rows, int64_t inner, int64_t columns,
                          const Matrix& out, const Finish& finish, int64_t threads) {
    const int64_t strips = (columns + strip - 1) / strip;
    int64_t of_columns = 1;
    for (int64_t more = 2; more <= std::min(strips, threads); more++)
        if (threads % more == 0 && rows * more * more <= columns * threads) of_columns = more;
    const int64_t of_rows = threads / of_columns, parts = of_rows * of_columns;
    for_each(parts, parts, [&](int64_t part) {
        const int64_t row = part / of_columns, column = part % of_columns;
        const int64_t first = rows * row / of_rows, end = rows * (row + 1) / of_rows;
        const int64_t left = strips * column / of_columns * strip;
        const int64_t right = std::min(strips * (column + 1) / of_columns * strip, columns);
        multiply_rows(x.from(first, 0), y.from(0, left), end - first, inner, right - left, out.from(first, left),
                      finish.from(left));
    }, 2);
}

}  // namespace
