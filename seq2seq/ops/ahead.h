// Prefetching little by little, beside what is computed in the meantime.

#pragma once

#include "matrix.h"

namespace {

// A matrix with contiguous rows that is prefetched in equal steps. All at once, its lines would fill a core's list of
// those it waits for, and others that are near would wait behind them. Rows that do not exist may be prefetched.
class Ahead {
  public:
    Ahead() = default;

    template <class T>
    Ahead(const MatrixOf<T>& matrix, int64_t rows, int64_t columns, int64_t steps)
        : at(reinterpret_cast<const char*>(matrix.at)), row(matrix.row * int64_t(sizeof(T))),
          width(columns * int64_t(sizeof(T))), rows(rows), share(parts_of(rows * parts_of(width, line), steps)) {}

    void step() {
        for (int64_t i = 0; i < share && done < rows; i++) {
            __builtin_prefetch(at + done * row + offset);
            offset += line;
            if (offset >= width) offset = 0, done++;
        }
    }

  private:
    static constexpr int64_t line = 64;
    const char* at = nullptr;
    int64_t row = 0, width = 0, rows = 0, share = 0, done = 0, offset = 0;
};

}  // namespace
