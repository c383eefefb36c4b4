// Matrices, and matmuls of those that fit in a core's cache.

#pragma once

#include <algorithm>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr int64_t whole_vectors(int64_t count) { return rounded_up(count, lanes); }

// A matrix; element (i, j) lies at i * row + j * column.
template <class T>
struct MatrixOf {
    T* at;
    int64_t row, column = 1;
    T* operator[](int64_t i) const { return at + i * row; }
    MatrixOf from(int64_t i, int64_t j) const { return {at + i * row + j * column, row, column}; }
    MatrixOf transposed() const { return {at, column, row}; }
};
using Matrix = MatrixOf<float>;

// A thread's memory for intermediate results. It is kept: allocating it takes as long as a small matmul.
class Room {
  public:
    Matrix rows(int64_t count, int64_t columns) {
        auto& all = kept();
        if (used == all.size()) all.emplace_back();
        auto& own = all[used++];
        const int64_t row = whole_vectors(columns);
        if (int64_t(own.size()) < count * row + lanes) own.resize(count * row + lanes);
        // A vector that straddles two cache lines takes twice the time.
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

// How many numbers a word of 32 bits has.
template <class T>
constexpr int64_t of_word = 4 / int64_t(sizeof(T));

// Words of rows become columns, which are padded with zeros to whole vectors.
template <class T>
void copy_transposed(const MatrixOf<T>& from, int64_t rows, int64_t words, const Matrix& to) {
    constexpr std::integral_constant<int64_t, lanes> whole;
    for (int64_t row = 0; row < rows; row += lanes) {
        for (int64_t word = 0; word < words; word += lanes) {
            const auto copy = [&](auto high, auto wide) {
                wide_floats block[lanes] = {};
                for (int64_t i = 0; i < high; i++)
                    std::memcpy(block + i, from.from(row + i, word * of_word<T>).at, wide * sizeof(float));
                transpose(block);
                for (int64_t i = 0; i < wide; i++) store_wide(block[i], to.from(word + i, row).at);
            };
            if (row + lanes <= rows && word + lanes <= words) copy(whole, whole);
            else copy(std::min(lanes, rows - row), std::min(lanes, words - word));
        }
    }
}

// Adds x · y to sums in registers. Elements of x and y are words: one number in float32, or two in bfloat16. `between`
// is called before every `stretch` words.
template <class T, int64_t stretch, int rows, int width, class Between>
__attribute__((always_inline)) inline void accumulate(const Matrix& x, const Matrix& y, int64_t inner,
                                                      wide_floats (&sums)[rows][width], const Between& between) {
    for (int64_t start = 0; start < inner; start += stretch) {
        between();
        for (int64_t i = start; i < std::min(start + stretch, inner); i++) {
            wide_floats parts[width];
            for (int w = 0; w < width; w++) parts[w] = in_register(load_wide<wide_floats>(y[i] + w * lanes));
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                const wide_floats own = spread_word<T>(x.at + r * x.row + i * x.column);
#pragma GCC unroll 8
                for (int w = 0; w < width; w++) sums[r][w] = add_words<T>(sums[r][w], own, parts[w]);
            }
        }
    }
}

template <int rows, int width>
void multiply_block(const Matrix& x, const Matrix& y, int64_t inner, const Matrix& out, bool add) {
    wide_floats sums[rows][width] = {};
    if (add)
        for (int r = 0; r < rows; r++)
            for (int w = 0; w < width; w++) sums[r][w] = load_wide<wide_floats>(out[r] + w * lanes);
    accumulate<float, 1 << 30>(x, y, inner, sums, [] {});
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < width; w++) store_wide(sums[r][w], out[r] + w * lanes);
}

// out [rows, columns] = x [rows, inner] · y [inner, columns], or with `add` added to `out`.
inline void matrix_product(const Matrix& x, const Matrix& y, int64_t rows, int64_t inner, int64_t columns,
                           const Matrix& out, bool add = false) {
    // As many sums as fit into registers: there are 32 with 512 bits, else 16.
    constexpr bool has_32 = lanes == 16;
    const auto some_vectors = [&](int64_t vector, auto width) {
        const int64_t column = vector * lanes;
        const auto some_rows = [&](int64_t row, auto count) {
            multiply_block<count, width>(x.from(row, 0), y.from(0, column), inner, out.from(row, column), add);
        };
        constexpr int most = width == 1 ? 12 : 6;
        by_rows<has_32 ? most : most / 2, 3, 1>(0, rows, some_rows);
    };
    by_rows<has_32 ? 4 : 2, 2, 1>(0, parts_of(columns, lanes), some_vectors);
}

}  // namespace
