// Work shared among threads.

#pragma once

#include <omp.h>

#include <cstdint>

// Otherwise compilers would make a copy of a function for each call site, specialised to what is known there.
#if defined(__GNUC__) && !defined(__clang__)
#define WITHOUT_COPIES __attribute__((noipa))
#else
#define WITHOUT_COPIES __attribute__((noinline))
#endif

namespace {

constexpr int64_t parts_of(int64_t count, int64_t most) { return (count + most - 1) / most; }

constexpr int64_t rounded_up(int64_t count, int64_t step) { return parts_of(count, step) * step; }

// Compiled once, so that results have the same bits for any number of threads.
template <class Compute>
WITHOUT_COPIES void compute_share(const Compute& compute, int64_t first, int64_t end) {
    compute(first, end);
}

// Calls `compute` with the first and the end of each thread's share of the range from 0 to `count`.
template <class Compute>
void parallel_ranges(int64_t count, int64_t threads, const Compute& compute) {
    // A team of one thread would still make a system call to wake the others whenever it ends.
    if (threads <= 1 || omp_in_parallel()) return compute_share(compute, 0, count);
#pragma omp parallel for num_threads(int(threads))
    for (int64_t i = 0; i < threads; i++) compute_share(compute, count * i / threads, count * (i + 1) / threads);
}

template <class Compute>
void parallel_for(int64_t count, int64_t threads, Compute compute, int64_t least = 64) {
    // A handful of items takes less time than waking another thread.
    parallel_ranges(count, count < least ? 1 : threads, [=](int64_t first, int64_t end) {
        for (int64_t i = first; i < end; i++) compute(i);
    });
}

}  // namespace
