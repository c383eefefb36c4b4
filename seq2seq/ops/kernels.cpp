// What translation does between its matrix products, and all of a step of few hypotheses, for processors. Each function
// has its plain reference in PyTorch beside the Python function that calls it (`native.call`): in row_attention.py,
// topk.py, add_norm.py, quantized_linear.py, few_rows.py and model/few_rows.py.
//
// What comes out for a row does not depend on which others there are, nor on `threads`.

#include "decoder_step.h"

namespace {

template <class Compute>
void for_each(int64_t count, int64_t threads, Compute compute, int64_t least = 64) {
    // A handful takes less time than waking another thread.
#pragma omp parallel for num_threads(int(threads)) if (threads > 1 && count >= least)
    for (int64_t i = 0; i < count; i++) compute(i);
}

template <class T>
void attend(const T* queries, const T* keys_values, const int32_t* lists, const int32_t* list_of, T* out, int64_t rows,
            int64_t longest, int64_t heads, int64_t d_k, int64_t d_v, int64_t threads) {
    // Not row by row: those with one list are computed together.
    constexpr int64_t block = 2 * together;
    for_each((rows + block - 1) / block, threads, [=](int64_t number) {
        attend_rows(queries, keys_values, lists, list_of, out, number * block, std::min(rows, (number + 1) * block),
                    longest, heads, d_k, d_v);
    }, 64 / block);
}

template <class T>
void negative_log_sum_exp(const T* logits, float* out, int64_t rows, int64_t vocabulary, int64_t threads) {
    for_each(rows, threads, [=](int64_t row) {
        const T* own = logits + row * vocabulary;
        const float most = largest(own, vocabulary);
        out[row] = -most - std::log(sum_of_exponentials(own, vocabulary, most));
    });
}

// The `count` highest sums of a total and a score in each slot, highest first; of which hypothesis, and of which token.
template <class T>
void best(const T* scores, const float* totals, float* found, int64_t* hypotheses, int64_t* tokens, int64_t slots,
          int64_t width, int64_t vocabulary, int64_t count, int64_t threads) {
    constexpr int64_t block = 64;
    for_each(slots, threads, [=](int64_t slot) {
        float* sums = found + slot * count;
        std::vector<int64_t> places(count);
        for (int64_t i = 0; i < count; i++) sums[i] = -infinity, places[i] = i;
        for (int64_t place = 0, length; place < width * vocabulary; place += length) {
            const int64_t left = vocabulary - place % vocabulary;
            length = left < block ? left : block;
            const T* own = scores + slot * width * vocabulary + place;
            const float total = totals[slot * width + place / vocabulary];
            // Most blocks hold nothing that is wanted.
            if (!(total + largest(own, length) > sums[count - 1])) continue;
            for (int64_t i = 0; i < length; i++) {
                const float sum = total + widen(own[i]);
                if (!(sum > sums[count - 1])) continue;
                int64_t rank = count - 1;
                for (; rank > 0 && sum > sums[rank - 1]; rank--)
                    sums[rank] = sums[rank - 1], places[rank] = places[rank - 1];
                sums[rank] = sum, places[rank] = place + i;
            }
        }
        for (int64_t i = 0; i < count; i++)
            hypotheses[slot * count + i] = places[i] / vocabulary, tokens[slot * count + i] = places[i] % vocabulary;
    });
}

template <class T>
void add_norm(const T* x, const T* y, const T* weight, const T* bias, T* out, int64_t rows, int64_t columns,
              int64_t threads) {
    for_each(rows, threads, [=](int64_t row) {
        std::vector<float> sums(columns);
        for (int64_t i = 0; i < columns; i++) sums[i] = widen(x[row * columns + i]) + widen(y[row * columns + i]);
        norm_row(sums.data(), weight, bias, out + row * columns, columns);
    });
}

template <class T>
void linear_few(const T* x, const Linear* layer, T* out, int64_t rows, int64_t rectify, int64_t threads) {
    std::vector<float> given(rows * layer->inputs), found(rows * layer->outputs);
    for (size_t i = 0; i < given.size(); i++) given[i] = widen(x[i]);
    linear(*layer, given.data(), found.data(), rows, threads, rectify);
    for (size_t i = 0; i < found.size(); i++) narrow(found[i], out[i]);
}

template <class T>
void decoder_step(T* x, const DecoderLayer* layers, T* const* targets, T* const* sources, const Step& step,
                  int64_t number, int64_t columns) {
    std::vector<float> rows(step.rows * columns);
    for (size_t i = 0; i < rows.size(); i++) rows[i] = widen(x[i]);
    for (int64_t i = 0; i < number; i++) decoder_layer(layers[i], step, targets[i], sources[i], rows);
    for (size_t i = 0; i < rows.size(); i++) narrow(rows[i], x[i]);
}

}  // namespace

#define FOR_BOTH_FORMATS(format, T)                                                                                    \
    void attend_##format(const T* queries, const T* keys_values, const int32_t* lists, const int32_t* list_of, T* out, \
                         int64_t rows, int64_t longest, int64_t heads, int64_t d_k, int64_t d_v, int64_t threads) {    \
        attend(queries, keys_values, lists, list_of, out, rows, longest, heads, d_k, d_v, threads);                    \
    }                                                                                                                  \
    void negative_log_sum_exp_##format(const T* logits, float* out, int64_t rows, int64_t vocabulary,                  \
                                       int64_t threads) {                                                              \
        negative_log_sum_exp(logits, out, rows, vocabulary, threads);                                                  \
    }                                                                                                                  \
    void best_##format(const T* scores, const float* totals, float* found, int64_t* hypotheses, int64_t* tokens,       \
                       int64_t slots, int64_t width, int64_t vocabulary, int64_t count, int64_t threads) {             \
        best(scores, totals, found, hypotheses, tokens, slots, width, vocabulary, count, threads);                     \
    }                                                                                                                  \
    void add_norm_##format(const T* x, const T* y, const T* weight, const T* bias, T* out, int64_t rows,               \
                           int64_t columns, int64_t threads) {                                                         \
        add_norm(x, y, weight, bias, out, rows, columns, threads);                                                     \
    }                                                                                                                  \
    void linear_few_##format(const T* x, const Linear* layer, T* out, int64_t rows, int64_t rectify,                   \
                             int64_t threads) {                                                                        \
        linear_few(x, layer, out, rows, rectify, threads);                                                             \
    }                                                                                                                  \
    void decoder_step_##format(T* x, const DecoderLayer* layers, T* const* targets, T* const* sources,                 \
                               const int32_t* pasts, const int32_t* lists, const int32_t* list_of, int64_t rows,       \
                               int64_t filled, int64_t steps, int64_t longest, int64_t heads, int64_t d_k,             \
                               int64_t d_v, int64_t norm_first, int64_t number, int64_t columns, int64_t threads) {    \
        const Step step = {rows, filled, heads, d_k, d_v, norm_first != 0, pasts, steps, lists, list_of, longest,      \
                           threads};                                                                                   \
        decoder_step(x, layers, targets, sources, step, number, columns);                                              \
    }

extern "C" {
FOR_BOTH_FORMATS(float32, float)
FOR_BOTH_FORMATS(bfloat16, bfloat16)

void round_rows_float32(const float* x, uint8_t* out, float* steps, int64_t rows, int64_t columns, int64_t levels,
                        int64_t threads) {
    for_each(rows, threads, [=](int64_t row) {
        steps[row] = round_row(x + row * columns, out + row * columns, columns, levels);
    });
}

void finish_rows_float32(float* x, const float* steps, const float* bias, int64_t rows, int64_t columns,
                         int64_t rectify, int64_t threads) {
    for_each(rows, threads, [=](int64_t row) { finish_row(x + row * columns, steps[row], bias, columns, rectify); });
}
}
