// CPU kernels for translation and training: the layers of a Transformer, and their parts. Each function has its plain
// reference in PyTorch beside the Python function that calls it (`native.call`): for translation in
// row_attention.py, sequences.py, embed.py, topk.py, residual_norm.py, panel_linear.py, quantized_linear.py and
// model/native_layers.py, for training in sentence_attention.py (the reference in attention.py), product.py,
// residual_norm.py and linear_cross_entropy.py.
//
// A row's result does not depend on the other rows (except in sums over rows, and in dropout, whose mask depends on the
// row's number), and nothing depends on `threads`.

#include "choose.h"
#include "layers.h"
#include "product.h"
#include "threads.h"
#include "training.h"

namespace {

template <class T>
void attend(const T* queries, const T* keys_values, const int32_t* lists, const int32_t* list_of, T* out, int64_t rows,
            int64_t longest, int64_t heads, int64_t d_k, int64_t d_v, int64_t threads) {
    // Not row by row: rows that share a list are computed together.
    constexpr int64_t block = 2 * together;
    parallel_for(parts_of(rows, block), threads, [=](int64_t number) {
        attend_rows(queries, keys_values, lists, list_of, out, number * block, std::min(rows, (number + 1) * block),
                    longest, heads, d_k, d_v);
    }, 64 / block);
}

template <class T>
void negative_log_sum_exp(const T* logits, float* out, int64_t rows, int64_t vocabulary, int64_t threads) {
    parallel_for(rows, threads, [=](int64_t row) {
        const T* own = logits + row * vocabulary;
        const float most = largest(own, vocabulary);
        out[row] = -most - std::log(sum_of_exponentials(own, vocabulary, most));
    });
}

// Of sequences of `length` elements, `before` per slot, the `width` at `places`, each with one more element: one of
// `last`, or the next number.
template <class T>
void extended(const T* sequences, const int64_t* places, const T* last, T* out, int64_t slots, int64_t before,
              int64_t width, int64_t length, int64_t number, int64_t threads) {
    parallel_for(slots * width, threads, [=](int64_t row) {
        T* own = out + row * (length + 1);
        std::copy_n(sequences + (row / width * before + places[row]) * length, length, own);
        own[length] = last ? last[row] : T(number + row);
    }, 4096);
}

// √columns times the rows of tokens, plus those of their positions, or of the position `same` for all.
template <class T, class Out = T>
void embed(const T* of_tokens, const T* of_positions, const int64_t* tokens, const int64_t* positions, Out* out,
           int64_t vocabulary, int64_t longest, int64_t columns, int64_t same, int64_t count, int64_t threads) {
    const float scale = std::sqrt(float(columns)), nothing = std::numeric_limits<float>::quiet_NaN();
    parallel_for(count, threads, [=](int64_t row) {
        const int64_t token = tokens[row], position = positions ? positions[row] : same;
        const bool known = 0 <= token && token < vocabulary && 0 <= position && position < longest;
        const T* x = of_tokens + (known ? token : 0) * columns;
        const T* y = of_positions + (known ? position : 0) * columns;
        Out* own = out + row * columns;
        for (int64_t i = 0; i < columns; i++) narrow(widen(x[i]) * (known ? scale : nothing) + widen(y[i]), own[i]);
    });
}

template <class T>
void add_norm(const T* x, const T* y, const T* weight, const T* bias, T* out, int64_t rows, int64_t columns,
              int64_t threads) {
    parallel_for(rows, threads, [=](int64_t row) {
        std::vector<float> sums(columns);
        for (int64_t i = 0; i < columns; i++) {
            T sum;
            narrow(widen(x[row * columns + i]) + widen(y[row * columns + i]), sum);
            sums[i] = widen(sum);
        }
        norm_row(sums.data(), weight, bias, out + row * columns, columns);
    });
}

template <class T>
void linear_rows(const T* x, const Linear& layer, T* out, int64_t rows, int64_t relu, int64_t threads) {
    constexpr int64_t some = 256;
    for (int64_t first = 0; first < rows; first += some) {
        const LayerInput given(layer, x + first * layer.inputs, std::min(some, rows - first));
        linear(layer, given, out + first * layer.outputs, threads, relu != 0);
    }
}

template <class T>
void encoder_layers(T* x, const EncoderLayer* layers, const int32_t* lists, const int32_t* list_of, int64_t longest,
                    int64_t heads, int64_t d_k, int64_t d_v, int64_t norm_first, int64_t number, int64_t rows,
                    int64_t columns, int64_t threads) {
    const Lists sentences = {lists, list_of, longest};
    const Shape shape = {heads, d_k, d_v, norm_first != 0, threads};
    const auto queries = uninitialised<float>(rows * shape.keys()), wide = uninitialised<float>(rows * columns);
    const auto table = uninitialised<T>(rows * (shape.keys() + shape.values()));
    for (int64_t i = 0; i < rows * columns; i++) wide[i] = widen(x[i]);
    for (int64_t i = 0; i < number; i++)
        encoder_layer(layers[i], shape, queries.get(), table.get(), sentences, wide.get(), rows, columns);
    narrow_rows(wide.get(), x, rows, columns);
}

// `targets` and `sources` are each layer's tables of keys and values; those of the target have `filled` rows so far.
template <class T>
void decoder_step(T* out, const DecoderLayer* layers, const Norm* last, const T* of_tokens, const T* of_positions,
                  const int64_t* tokens, const int64_t* parents, const int32_t* past, int32_t* grown, T* const* targets,
                  T* const* sources, const int32_t* lists, const int32_t* list_of, int64_t vocabulary, int64_t longest,
                  int64_t columns, int64_t slots, int64_t before, int64_t width, int64_t length, int64_t filled,
                  int64_t longest_source, int64_t heads, int64_t d_k, int64_t d_v, int64_t norm_first, int64_t number,
                  int64_t threads) {
    const Lists of_source = {lists, list_of, longest_source}, seen = {grown, nullptr, length + 1};
    const Shape shape = {heads, d_k, d_v, norm_first != 0, threads};
    const int64_t rows = slots * width;
    const auto x = uninitialised<float>(rows * columns);
    embed(of_tokens, of_positions, tokens, nullptr, x.get(), vocabulary, longest, columns, length, rows, threads);
    extended<int32_t>(past, parents, nullptr, grown, slots, before, width, length, filled, threads);
    for (int64_t i = 0; i < number; i++)
        parallel_blocks(rows, threads, [&](int64_t first, int64_t some) {
            T* own = targets[i] + (filled + first) * (shape.keys() + shape.values());
            decoder_layer(layers[i], shape, targets[i], own, sources[i], seen.from(first), of_source.from(first),
                          x.get() + first * columns, some, columns);
        });
    if (last->weight) normalise(*last, x.get(), x.get(), rows, columns);
    narrow_rows(x.get(), out, rows, columns);
}

// x·y, with `Finish` applied, for matrices whose elements lie at i * row + j * column.
template <class T, class Out = T>
void product(Out* out, T* x, T* y, const float* bias, float* sums_of_x, int64_t rows, int64_t inner, int64_t columns,
             int64_t x_row, int64_t x_column, int64_t y_row, int64_t y_column, int64_t add, int64_t relu,
             int64_t threads) {
    large_product<T, Out>({x, x_row, x_column}, {y, y_row, y_column}, rows, inner, columns, {out, columns}, add != 0,
                          {bias, relu != 0}, sums_of_x, threads);
}

}  // namespace

// The addresses of these functions under the names by which Python asks for them (`native.call`).
#define OF_BOTH_FORMATS(name)              \
    auto* name##_float32 = name<float>;    \
    auto* name##_bfloat16 = name<bfloat16>;

extern "C" {
OF_BOTH_FORMATS(attend)
OF_BOTH_FORMATS(negative_log_sum_exp)
OF_BOTH_FORMATS(best)
OF_BOTH_FORMATS(add_norm)
OF_BOTH_FORMATS(embed)
OF_BOTH_FORMATS(linear_rows)
OF_BOTH_FORMATS(best_of_rows)
OF_BOTH_FORMATS(encoder_layers)
OF_BOTH_FORMATS(decoder_step)
OF_BOTH_FORMATS(attend_sentences)
OF_BOTH_FORMATS(gradients_of_sentences)
OF_BOTH_FORMATS(residual_norm)
OF_BOTH_FORMATS(residual_norm_gradients)
OF_BOTH_FORMATS(logits_to_gradients)
OF_BOTH_FORMATS(product)
auto* product_of_bfloat16_float32 = product<bfloat16, float>;
auto* extended_int32 = extended<int32_t>;
auto* extended_int64 = extended<int64_t>;
auto* highest_float32 = highest;

// Whether our matmuls are faster here than oneDNN's, in all formats.
int64_t has_fast_matmul() {
#if defined(__AVX2__) && defined(__FMA__)
    return 1;
#else
    return 0;
#endif
}

// Whether our matmuls of large matrices are faster here than PyTorch's: they were measured on a Zen 4 and a Zen 5.
int64_t has_fast_large_matmul_float32() {
#if defined(__AVX512BW__)
    return __builtin_cpu_is("amd") != 0;
#else
    return 0;
#endif
}
int64_t has_fast_large_matmul_bfloat16() { return adds_pairs && has_fast_large_matmul_float32(); }

// Steps on each side of zero for int8 rows: where products are added in pairs in 16 bits, these sums must not overflow.
int64_t levels_of_rows() { return adds_in_16_bits && !has_amx() ? 63 : 127; }
}
