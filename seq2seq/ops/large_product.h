// Matmuls of large matrices in training, in float32 and bfloat16, in parts that fit in a core's cache.
//
// The inner dimension is taken in words of 32 bits: one number in float32, two in bfloat16. Sums are in float32 and in
// one order, whatever the number of threads.

#pragma once

#include <algorithm>

#include "matrix.h"
#include "threads.h"

namespace {

template <class T>
constexpr int64_t of_word = 4 / int64_t(sizeof(T));

// What is in a core's cache at once: rows of x, columns of y, and words of the inner dimension.
constexpr int64_t rows_at_once = 96, columns_at_once = 256, words_at_once = 512;
// How many rows ahead of the copy to prefetch.
constexpr int64_t rows_ahead = 16;
// How many vectors of each of six rows have their sums in registers.
constexpr int64_t strip_vectors = lanes == 16 ? 4 : 2, strip = strip_vectors * lanes;

inline void pack_words(const float* numbers, const float*, int64_t count, float* words) {
    std::copy_n(numbers, count, words);
}

inline void pack_words(const bfloat16* numbers, const bfloat16* next, int64_t count, float* words) {
    for (int64_t j = 0; j < count; j++) {
        const uint32_t word = numbers[j].bits | (next ? uint32_t(next[j].bits) << 16 : 0);
        std::memcpy(words + j, &word, sizeof word);
    }
}

// Rows of words, each made of vertically adjacent numbers; an odd last row is paired with zeros.
template <class T>
void copy_as_words(const MatrixOf<T>& from, int64_t rows, int64_t count, const Matrix& to) {
    for (int64_t i = 0; i < rows; i += of_word<T>) {
        for (int64_t k = 0; k < of_word<T>; k++) prefetch(from[i + rows_ahead + k], count);
        pack_words(from[i], i + 1 < rows ? from[i + 1] : nullptr, count, to[i / of_word<T>]);
    }
}

// Adds rows to `sums`, after adding them to each other.
template <class T>
void add_rows(const MatrixOf<T>& from, int64_t rows, int64_t count, float* sums) {
    float parts[rows_at_once] = {};
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < count; j++) parts[j] += widen(from[i][j]);
    for (int64_t j = 0; j < count; j++) sums[j] += parts[j];
}

// Columns of y strip by strip, [columns / strip, words, strip], padded with zeros.
template <class T>
void pack(const MatrixOf<T>& y, int64_t inner, int64_t columns, float* out) {
    const int64_t words = (inner + of_word<T> - 1) / of_word<T>;
    for (int64_t first = 0; first < columns; first += strip, out += words * strip) {
        const int64_t count = std::min(strip, columns - first);
        if (count < strip) std::fill_n(out, words * strip, 0.0f);
        if (y.column == 1) {
            copy_as_words(y.from(0, first), inner, count, {out, strip});
            continue;
        }
        // Some at a time, so that cache lines that are read or written are used whole while they are cached.
        for (int64_t start = 0; start < words; start += lanes)
            for (int64_t j = 0; j < count; j++)
                for (int64_t i = start; i < std::min(start + lanes, words); i++)
                    std::memcpy(out + i * strip + j, y.from(i * of_word<T>, first + j).at, sizeof *out);
    }
}

// What is done to sums: `bias` and `before` are added, if there are any; with `relu`, ReLU follows.
struct Finish {
    const float* bias;
    bool relu;

    Finish from(int64_t column) const { return {bias ? bias + column : nullptr, relu}; }

    // For a part of the inner dimension.
    Finish of_part(bool first, bool last) const { return {first ? bias : nullptr, relu && last}; }

    template <class Out>
    void operator()(const float* sums, const float* before, Out* out, int64_t count) const {
        int64_t i = 0;
        for (; i + lanes <= count; i += lanes) store_wide(finished<wide_floats>(sums, before, i), out + i);
        for (; i < count; i++) narrow(finished<float>(sums, before, i), out[i]);
    }

  private:
    template <class Wide>
    static Wide at(const float* numbers, int64_t i) {
        Wide found;
        std::memcpy(&found, numbers + i, sizeof found);
        return found;
    }

    template <class Wide>
    Wide finished(const float* sums, const float* before, int64_t i) const {
        Wide value = at<Wide>(sums, i);
        if (bias) value += at<Wide>(bias, i);
        if (before) value += at<Wide>(before, i);
        return relu ? (value < Wide{} ? Wide{} : value) : value;
    }
};

template <class T, int rows, class Out>
void multiply_strip(const Matrix& x, const float* y, int64_t words, const Matrix& before, const MatrixOf<Out>& out,
                    int64_t count, const Finish& finish) {
    alignas(64) float sums[rows * strip];
    for (int64_t r = 0; r < rows; r++) prefetch(out[r], count);
    multiply_block<rows, strip_vectors, T>(x, {const_cast<float*>(y), strip}, words, {sums, strip}, false);
    for (int64_t r = 0; r < rows; r++) finish(sums + r * strip, before.at ? before[r] : nullptr, out[r], count);
}

// out [rows, columns] = x [rows, words] · y, with `finish` applied, for what is in a core's cache at once.
template <class T, class Out>
void multiply_part(const Matrix& x, const Matrix& strips, int64_t rows, int64_t words, int64_t columns,
                   const Matrix& before, const MatrixOf<Out>& out, const Finish& finish) {
    by_rows<6, 4, 2, 1>(0, rows, [&](int64_t row, auto some) {
        if (x.column == 1)
            for (int64_t next = row + some; next < std::min(row + 2 * some, rows); next++) prefetch(x[next], words);
        for (int64_t column = 0; column < columns; column += strip)
            multiply_strip<T, some>(x.from(row, 0), strips.at + column * words, words,
                                    before.at ? before.from(row, column) : before, out.from(row, column),
                                    std::min(strip, columns - column), finish.from(column));
    });
}

// The same for any size, in such parts.
template <class T, class Out>
void multiply_rows(const MatrixOf<T>& x, const MatrixOf<T>& y, int64_t rows, int64_t inner, int64_t columns,
                   const MatrixOf<Out>& out, bool add, const Finish& finish, float* sums_of_x) {
    constexpr int64_t inner_at_once = words_at_once * of_word<T>;
    Room room;
    const Matrix strips = room.rows(1, words_at_once * columns_at_once), block = room.rows(words_at_once, rows_at_once);
    // Partial sums are kept in the result itself if that is in float32.
    const bool apart = !std::is_same_v<Out, float> && inner > inner_at_once;
    Matrix sums = apart ? room.rows(rows, columns_at_once) : Matrix{};
    for (int64_t column = 0; column < columns; column += columns_at_once) {
        const int64_t wide = std::min(columns_at_once, columns - column);
        if constexpr (std::is_same_v<Out, float>) sums = out.from(0, column);
        for (int64_t start = 0; start < inner; start += inner_at_once) {
            const int64_t deep = std::min(inner_at_once, inner - start), words = (deep + of_word<T> - 1) / of_word<T>;
            const bool last = start + deep == inner;
            pack(y.from(start, column), deep, wide, strips.at);
            const Finish now = finish.from(column).of_part(start == 0, last);
            for (int64_t row = 0; row < rows; row += rows_at_once) {
                const int64_t high = std::min(rows_at_once, rows - row);
                Matrix given{reinterpret_cast<float*>(x.from(row, start).at), x.row / of_word<T>};
                if (x.column != 1) {
                    // Columns that are whole pages apart would conflict in the cache.
                    const MatrixOf<T> below = x.from(row, start).transposed();
                    copy_as_words(below, deep, high, block);
                    if (sums_of_x && column == 0) add_rows(below, deep, high, sums_of_x + row);
                    given = block.transposed();
                }
                const Matrix kept = sums.from(row, 0), before = add || start > 0 ? kept : Matrix{};
                if (last) multiply_part<T>(given, strips, high, words, wide, before, out.from(row, column), now);
                else multiply_part<T>(given, strips, high, words, wide, before, kept, now);
            }
        }
    }
}

// The same, shared among threads in parts as nearly square as possible, as each copies its rows of x and columns of y.
// In x and y, either rows or columns must be contiguous, in whole words along the inner dimension; no size may be 0. A
// result in bfloat16 cannot be added to. Row sums of x are added to `sums_of_x` if it is given; then the columns of x
// must be contiguous.
template <class T, class Out>
void large_product(const MatrixOf<T>& x, const MatrixOf<T>& y, int64_t rows, int64_t inner, int64_t columns,
                   const MatrixOf<Out>& out, bool add, const Finish& finish, float* sums_of_x, int64_t threads) {
    const int64_t strips = (columns + strip - 1) / strip;
    int64_t of_columns = 1;
    for (int64_t more = 2; more <= std::min(strips, threads); more++)
        if (threads % more == 0 && rows * more * more <= columns * threads) of_columns = more;
    const int64_t of_rows = threads / of_columns, parts = of_rows * of_columns;
    parallel_for(parts, parts, [&](int64_t part) {
        const int64_t row = part / of_columns, column = part % of_columns;
        const int64_t first = rows * row / of_rows, end = rows * (row + 1) / of_rows;
        const int64_t left = strips * column / of_columns * strip;
        const int64_t right = std::min(strips * (column + 1) / of_columns * strip, columns);
        multiply_rows(x.from(first, 0), y.from(0, left), end - first, inner, right - left, out.from(first, left), add,
                      finish.from(left), sums_of_x && left == 0 ? sums_of_x + first : nullptr);
    }, 2);
}

}  // namespace
