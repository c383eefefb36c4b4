// Work shared among threads.

#pragma once

#include <cstdint>

namespace {

template <class Compute>
void for_each(int64_t count, int64_t threads, Compute compute, int64_t least = 64) {
    // A handful takes less time than waking another thread.
#pragma omp parallel for num_threads(int(threads)) if (threads > 1 && count >= least)
    for (int64_t i = 0; i < count; i++) compute(i);
}

}  // namespace
