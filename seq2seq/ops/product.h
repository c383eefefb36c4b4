// Matmuls of large matrices in training, in float32 and bfloat16, in parts that fit in a core's cache.
//
// The inner dimension is taken in words of 32 bits: one number in float32, two in bfloat16. Sums are in float32 and in
// one order, whatever the number of threads.

#pragma once

#include "ahead.h"
#include "threads.h"

namespace {

// What is in a core's cache at once: rows of x, columns of y, and words of the inner dimension.
constexpr int64_t rows_at_once = 96, columns_at_once = 256, words_at_once = 512;
// How many rows ahead of the copy to prefetch.
constexpr int64_t rows_ahead = 16;
// How many vectors of each of six rows have their sums in registers.
constexpr int64_t strip_vectors = lanes == 16 ? 4 : 2, strip = strip_vectors * lanes;
// After how many words to prefetch a little more.
constexpr int64_t stretch = 64;

// In how many steps six rows are multiplied by so many words and columns.
constexpr int64_t steps_of(int64_t words, int64_t columns) {
    return parts_of(words, stretch) * parts_of(columns, strip);
}

// What is multiplied next.
struct Next {
    Ahead x, y;
};

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
    const int64_t words = parts_of(inner, of_word<T>);
    for (int64_t first = 0; first < columns; first += strip, out += words * strip) {
        const int64_t count = std::min(strip, columns - first);
        if (count < strip) std::fill_n(out, words * strip, 0.0f);
        if (y.column == 1) copy_as_words(y.from(0, first), inner, count, {out, strip});
        else copy_transposed(y.from(0, first).transposed(), count, words, {out, strip});
    }
}

// What is done to sums: `bias` and `before` are added, if there are any; with `relu`, ReLU follows.
struct Finish {
    const float* bias;
    bool relu;

    Finish from(int64_t column) const { return {bias ? bias + column : nullptr, relu}; }

    // For a part of the inner dimension.
    Finish of_part(bool first, bool last) const { return {first ? bias : nullptr, relu && last}; }

    // For a vector of sums, or one sum.
    template <class Wide, class Out>
    void operator()(Wide sum, const float* before, Out* out, int64_t column) const {
        if (bias) sum += at<Wide>(bias + column);
        if (before) sum += at<Wide>(before + column);
        if (relu) sum = sum < Wide{} ? Wide{} : sum;
        if constexpr (std::is_same_v<Wide, float>) narrow(sum, out[column]);
        else store_wide(sum, out + column);
    }

  private:
    template <class Wide>
    static Wide at(const float* numbers) {
        Wide found;
        std::memcpy(&found, numbers, sizeof found);
        return found;
    }
};

template <class T, int rows, class Out>
void multiply_strip(const Matrix& x, const float* y, int64_t words, const Matrix& before, const MatrixOf<Out>& out,
                    int64_t count, const Finish& finish, Next& next) {
    Ahead result(out, rows, count, parts_of(words, stretch));
    wide_floats sums[rows][strip_vectors] = {};
    accumulate<T, stretch>(x, {const_cast<float*>(y), strip}, words, sums, [&] {
        result.step();
        next.x.step();
        next.y.step();
    });
    const auto before_row = [&](int64_t r) { return before.at ? before[r] : nullptr; };
    const bool whole = count == strip;
    alignas(64) float rest[rows * strip];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 8
        for (int w = 0; w < strip_vectors; w++) {
            if (whole) finish(sums[r][w], before_row(r), out[r], w * lanes);
            else store_wide(sums[r][w], rest + r * strip + w * lanes);
        }
    }
    if (whole) return;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < count; i++) finish(rest[r * strip + i], before_row(r), out[r], i);
}

// out [rows, columns] = x [rows, words] · y, with `finish` applied, for what is in a core's cache at once.
template <class T, class Out>
void multiply_part(const Matrix& x, const Matrix& strips, int64_t rows, int64_t words, int64_t columns,
                   const Matrix& before, const MatrixOf<Out>& out, const Finish& finish, Next& next) {
    by_rows<6, 4, 2, 1>(0, rows, [&](int64_t row, auto some) {
        if (x.column == 1) next.x = Ahead(x.from(row + some, 0), some, words, steps_of(words, columns));
        for (int64_t column = 0; column < columns; column += strip)
            multiply_strip<T, some>(x.from(row, 0), strips.at + column * words, words,
                                    before.at ? before.from(row, column) : before, out.from(row, column),
                                    std::min(strip, columns - column), finish.from(column), next);
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
            const int64_t deep = std::min(inner_at_once, inner - start), words = parts_of(deep, of_word<T>);
            const bool last = start + deep == inner;
            pack(y.from(start, column), deep, wide, strips.at);
            const Finish now = finish.from(column).of_part(start == 0, last);
            const int64_t steps = steps_of(words, wide), end = start + deep;
            Next next;
            if (y.column == 1)
                next.y = Ahead(y.from(end, column), std::min(inner - end, deep), wide, parts_of(rows, 6) * steps);
            for (int64_t row = 0; row < rows; row += rows_at_once) {
                const int64_t high = std::min(rows_at_once, rows - row);
                Matrix given{reinterpret_cast<float*>(x.from(row, start).at), x.row / of_word<T>};
                if (x.column != 1) {
                    // Columns that are whole pages apart would conflict in the cache.
                    const MatrixOf<T> below = x.from(row, start).transposed();
                    copy_as_words(below, deep, high, block);
                    if (sums_of_x && column == 0) add_rows(below, deep, high, sums_of_x + row);
                    given = block.transposed();
                    const bool more = row + high < rows;
                    const int64_t next_row = more ? row + high : 0, next_start = more ? start : end;
                    next.x = Ahead(x.from(next_row, next_start).transposed(), std::min(inner - next_start, deep),
                                   std::min(rows - next_row, rows_at_once), parts_of(high, 6) * steps);
                }
                const Matrix kept = sums.from(row, 0), before = add || start > 0 ? kept : Matrix{};
                if (last) multiply_part<T>(given, strips, high, words, wide, before, out.from(row, column), now, next);
                else multiply_part<T>(given, strips, high, words, wide, before, kept, now, next);
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
    const int64_t strips = parts_of(columns, strip);
    int64_t of_columns = 1;
    for (int64_t more = 2; more <= std::min(strips, threads); more++)
        if (threads % more == 0 && rows * more * more <= columns * threads) of_columns = more;
    const int64_t of_rows = std::min(rows, threads / of_columns), parts = of_rows * of_columns;
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
