// The best continuations of hypotheses, from rows before the output layer to tokens, without writing out all logits.

#pragma once

#include <numeric>

#include "panel_linear.h"

namespace {

// How many outputs and how many rows are looked at together.
constexpr int64_t part_size = 8 * panel, rows_per_scan = 2 * tile;

// The `count` highest scores so far, highest first, and their places; among equal scores, the earlier one comes first.
struct Highest {
    float* scores;
    int64_t* places;
    int64_t count;

    Highest() = default;
    Highest(float* scores, int64_t* places, int64_t count) : scores(scores), places(places), count(count) { clear(); }

    void clear() const {
        std::fill_n(scores, count, -infinity);
        std::iota(places, places + count, 0);
    }

    float least() const { return scores[count - 1]; }

    void add(float score, int64_t place) const {
        if (!(score > least())) return;
        int64_t rank = count - 1;
        for (; rank > 0 && score > scores[rank - 1]; rank--)
            scores[rank] = scores[rank - 1], places[rank] = places[rank - 1];
        scores[rank] = score, places[rank] = place;
    }

    // Adds `total` + each of `size` scores, whose places begin at `first`. Most blocks hold none of the highest.
    template <class T>
    void add_row(const T* x, int64_t size, float total, int64_t first) const {
        constexpr int64_t block = 64;
        for (int64_t start = 0; start < size; start += block) {
            const int64_t end = std::min(start + block, size);
            if (!(total + largest(x + start, end - start) > least())) continue;
            for (int64_t i = start; i < end; i++) add(total + widen(x[i]), first + i);
        }
    }

    // The places, in rows of `vocabulary` tokens, as hypotheses and tokens.
    void split(int64_t vocabulary, int64_t* hypotheses, int64_t* tokens) const {
        for (int64_t i = 0; i < count; i++) hypotheses[i] = places[i] / vocabulary, tokens[i] = places[i] % vocabulary;
    }
};

// The largest logit of a part, and the sum of all exponentials relative to it.
struct PartialLogSumExp {
    float most, sum;
};

inline float log_of_all(const PartialLogSumExp* parts, int64_t count) {
    float most = -infinity, sum = 0.0f;
    for (int64_t i = 0; i < count; i++) most = most < parts[i].most ? parts[i].most : most;
    for (int64_t i = 0; i < count; i++) sum += parts[i].sum * std::exp(parts[i].most - most);
    return most + std::log(sum);
}

// For each row, the log-sum-exp of one part of the outputs, and those among the highest; `never` are left out of these.
template <class Format>
void scan_part(const Linear& output, const LayerInput& given, int64_t first_row, int64_t end_row, int64_t start,
               const int64_t* never, int64_t never_count, PartialLogSumExp* partial, int64_t parts,
               const Highest* highest) {
    alignas(64) float logits[rows_per_scan * part_size];
    const int64_t count = std::min(part_size, output.outputs - start);
    for (int64_t first = first_row; first < end_row; first += rows_per_scan) {
        const int64_t end = std::min(first + rows_per_scan, end_row);
        for (int64_t place = 0; place < count; place += panel) {
            const Beside beside(output, start + place);
            products<Format>(output, given, start + place, first, end, [&](int64_t row, const auto* sums) {
                finish_row(beside, sums, given.step(row), logits + (row - first) * part_size + place, panel, false);
            });
        }
        for (int64_t row = first; row < end; row++) {
            float* own = logits + (row - first) * part_size;
            PartialLogSumExp& of_part = partial[row * parts + start / part_size];
            of_part.most = largest(own, count);
            of_part.sum = sum_of_exponentials(own, count, of_part.most);
            const Highest& list = highest[row];
            if (!(of_part.most > list.least())) continue;
            for (int64_t i = 0; i < never_count; i++)
                if (never[i] >= start && never[i] < start + count) own[never[i] - start] = -infinity;
            for (int64_t i = 0; i < count; i += lanes) {
                const int64_t some = std::min(lanes, count - i);
                if (!(largest(own + i, some) > list.least())) continue;
                for (int64_t j = i; j < i + some; j++) list.add(own[j], start + j);
            }
        }
    }
}

// The `count` highest sums of a hypothesis' score and a log-probability in each slot of `width` hypotheses, highest
// first, with their hypotheses and tokens.
template <class T>
void best_of_rows(const T* hidden, const Linear& output, const float* scores, const int64_t* never, float* found,
                  int64_t* hypotheses, int64_t* tokens, int64_t never_count, int64_t slots, int64_t width,
                  int64_t count, int64_t threads) {
    const int64_t rows = slots * width, parts = parts_of(output.outputs, part_size);
    const LayerInput given(output, hidden, rows);
    const auto partial = uninitialised<PartialLogSumExp>(rows * parts);
    // Few rows are divided among threads by outputs, many by rows: each row has a list for each range of parts.
    const int64_t groups = std::clamp<int64_t>(rows / rows_per_scan, 1, threads);
    const int64_t ranges = parts_of(threads, groups);
    const auto logits = uninitialised<float>(ranges * rows * count);
    const auto outputs = uninitialised<int64_t>(ranges * rows * count);
    const auto highest = uninitialised<Highest>(ranges * rows);
    for (int64_t i = 0; i < ranges * rows; i++)
        highest[i] = Highest(logits.get() + i * count, outputs.get() + i * count, count);
    for_format(output, [&](auto format) {
        const int64_t each = rounded_up(parts_of(rows, groups), tile), of_range = parts_of(parts, ranges);
        parallel_for(groups * ranges, threads, [&](int64_t unit) {
            const TileConfig tiles(decltype(format)::tiled, rows);
            const int64_t first = unit / ranges * each, end = std::min(first + each, rows), range = unit % ranges;
            for (int64_t p = range * of_range; p < std::min((range + 1) * of_range, parts); p++)
                scan_part<decltype(format)>(output, given, first, end, p * part_size, never, never_count, partial.get(),
                                            parts, highest.get() + range * rows);
        }, 1);
    });
    std::vector<float> of_row(count);
    std::vector<int64_t> outputs_of_row(count);
    const Highest all(of_row.data(), outputs_of_row.data(), count);
    for (int64_t slot = 0; slot < slots; slot++) {
        std::vector<int64_t> places(count);
        const Highest best(found + slot * count, places.data(), count);
        for (int64_t row = slot * width; row < (slot + 1) * width; row++) {
            // All ranges of a row first: among sums that are equal only after rounding, the higher logit comes first.
            all.clear();
            for (int64_t range = 0; range < ranges; range++) {
                const Highest& own = highest[range * rows + row];
                for (int64_t i = 0; i < count && own.scores[i] > -infinity; i++) all.add(own.scores[i], own.places[i]);
            }
            const float total = scores[row] - log_of_all(partial.get() + row * parts, parts);
            for (int64_t i = 0; i < count && all.scores[i] > -infinity; i++)
                best.add(total + all.scores[i], (row - slot * width) * output.outputs + all.places[i]);
        }
        best.split(output.outputs, hypotheses + slot * count, tokens + slot * count);
    }
}

// The `count` highest sums of a total and a score in each slot, highest first, with their hypotheses and tokens.
template <class T>
void best(const T* scores, const float* totals, float* found, int64_t* hypotheses, int64_t* tokens, int64_t slots,
          int64_t width, int64_t vocabulary, int64_t count, int64_t threads) {
    parallel_for(slots, threads, [=](int64_t slot) {
        std::vector<int64_t> places(count);
        const Highest kept(found + slot * count, places.data(), count);
        for (int64_t k = 0; k < width; k++) {
            const int64_t row = slot * width + k;
            kept.add_row(scores + row * vocabulary, vocabulary, totals[row], k * vocabulary);
        }
        kept.split(vocabulary, hypotheses + slot * count, tokens + slot * count);
    });
}

// The `count` candidates of each slot with the highest scores, highest first; among equal scores, the earlier.
inline void highest(const float* scores, const int64_t* places, const int64_t* tokens, float* best,
                    int64_t* best_places, int64_t* best_tokens, int64_t slots, int64_t candidates, int64_t count,
                    int64_t threads) {
    parallel_for(slots, threads, [=](int64_t slot) {
        std::vector<int64_t> order(count);
        const Highest kept(best + slot * count, order.data(), count);
        for (int64_t i = 0; i < candidates; i++) kept.add(scores[slot * candidates + i], i);
        for (int64_t i = 0; i < count; i++) {
            best_places[slot * count + i] = places[slot * candidates + order[i]];
            best_tokens[slot * count + i] = tokens[slot * candidates + order[i]];
        }
    }, 1024);
}

}  // namespace
