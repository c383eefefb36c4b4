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
    parallel_for((rows + block - 1) / block, threads, [=](int64_t number) {
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

// Sequences of `length` elements, `before` per slot, of which the `width` at `places` are continued.
template <class T>
struct Growing {
    const T* sequences;
    const int64_t* places;
    T* out;
    int64_t slots, before, width, length;
};

// Those sequences, each with one more element: one of `last`, or the next number.
template <class T>
void extended(const Growing<T>& all, const T* last, int64_t number, int64_t threads) {
    parallel_for(all.slots * all.width, threads, [&](int64_t row) {
        T* out = all.out + row * (all.length + 1);
        std::copy_n(all.sequences + (row / all.width * all.before + all.places[row]) * all.length, all.length, out);
        out[all.length] = last ? last[row] : T(number + row);
    }, 4096);
}

// The embeddings of tokens, and of positions.
template <class T>
struct Embeddings {
    const T *of_tokens, *of_positions;
    int64_t tokens, positions, columns;
};

// √columns times the rows of tokens, plus those of their positions, or of the position `same` for all.
template <class T, class Out>
void embed(const Embeddings<T>& tables, const int64_t* tokens, const int64_t* positions, int64_t same, Out* out,
           int64_t count, int64_t threads) {
    const float scale = std::sqrt(float(tables.columns)), nothing = std::numeric_limits<float>::quiet_NaN();
    parallel_for(count, threads, [&](int64_t row) {
        const int64_t token = tokens[row], position = positions ? positions[row] : same;
        const bool known = 0 <= token && token < tables.tokens && 0 <= position && position < tables.positions;
        const T* x = tables.of_tokens + (known ? token : 0) * tables.columns;
        const T* y = tables.of_positions + (known ? position : 0) * tables.columns;
        Out* own = out + row * tables.columns;
        for (int64_t i = 0; i < tables.columns; i++)
            narrow(widen(x[i]) * (known ? scale : nothing) + widen(y[i]), own[i]);
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
void encoder_layers(T* x, const EncoderLayer* layers, const Lists& sentences, const Shape& shape, int64_t number,
                    int64_t rows, int64_t columns) {
    const auto queries = uninitialised<float>(rows * shape.keys()), wide = uninitialised<float>(rows * columns);
    const auto table = uninitialised<T>(rows * (shape.keys() + shape.values()));
    for (int64_t i = 0; i < rows * columns; i++) wide[i] = widen(x[i]);
    for (int64_t i = 0; i < number; i++)
        encoder_layer(layers[i], shape, queries.get(), table.get(), sentences, wide.get(), rows, columns);
    narrow_rows(wide.get(), x, rows, columns);
}

// The tables of keys and values of each layer's target and source, and how many rows those of the target have so far.
template <class T>
struct Tables {
    T *const *targets, *const *sources;
    int64_t filled;
};

template <class T>
void decoder_step(T* out, const DecoderLayer* layers, const Norm& last, const Embeddings<T>& embeddings,
                  const int64_t* tokens, const Growing<int32_t>& past, const Tables<T>& tables, const Lists& of_source,
                  const Shape& shape, int64_t number) {
    const int64_t rows = past.slots * past.width, columns = embeddings.columns;
    const auto x = uninitialised<float>(rows * columns);
    embed(embeddings, tokens, nullptr, past.length, x.get(), rows, shape.threads);
    extended<int32_t>(past, nullptr, tables.filled, shape.threads);
    const Lists seen = {past.out, nullptr, past.length + 1};
    for (int64_t i = 0; i < number; i++)
        parallel_blocks(rows, shape.threads, [&](int64_t first, int64_t some) {
            T *target = tables.targets[i], *own = target + (tables.filled + first) * (shape.keys() + shape.values());
            decoder_layer(layers[i], shape, target, own, tables.sources[i], seen.from(first), of_source.from(first),
                          x.get() + first * columns, some, columns);
        });
    if (last.weight) normalise(last, x.get(), x.get(), rows, columns);
    narrow_rows(x.get(), out, rows, columns);
}

// What Python calls with numbers alone: the same, with their arguments put together.
template <class T>
void embed_rows(const T* of_tokens, const T* of_positions, const int64_t* tokens, const int64_t* positions, T* out,
                int64_t vocabulary, int64_t longest, int64_t columns, int64_t same, int64_t count, int64_t threads) {
    embed<T>({of_tokens, of_positions, vocabulary, longest, columns}, tokens, positions, same, out, count, threads);
}

template <class T>
void all_encoder_layers(T* x, const EncoderLayer* layers, const int32_t* lists, const int32_t* list_of, int64_t longest,
                        int64_t heads, int64_t d_k, int64_t d_v, int64_t norm_first, int64_t number, int64_t rows,
                        int64_t columns, int64_t threads) {
    encoder_layers(x, layers, {lists, list_of, longest}, {heads, d_k, d_v, norm_first != 0, threads}, number, rows,
                   columns);
}

template <class T>
void whole_decoder_step(T* out, const DecoderLayer* layers, const Norm* last, const T* of_tokens, const T* of_positions,
                        const int64_t* tokens, const int64_t* parents, const int32_t* past, int32_t* grown,
                        T* const* targets, T* const* sources, const int32_t* lists, const int32_t* list_of,
                        int64_t vocabulary, int64_t longest, int64_t columns, int64_t slots, int64_t before,
                        int64_t width, int64_t length, int64_t filled, int64_t longest_source, int64_t heads,
                        int64_t d_k, int64_t d_v, int64_t norm_first, int64_t number, int64_t threads) {
    decoder_step<T>(out, layers, *last, {of_tokens, of_positions, vocabulary, longest, columns}, tokens,
                    {past, parents, grown, slots, before, width, length}, {targets, sources, filled},
                    {lists, list_of, longest_source}, {heads, d_k, d_v, norm_first != 0, threads}, number);
}

template <class T>
void attend_all_sentences(T* out, const T* queries, const T* keys_values, const int32_t* cu_queries,
                          const int32_t* cu_keys, int64_t sentences, int64_t heads, int64_t d_k, int64_t d_v,
                          int64_t query_row, int64_t first_key, int64_t key_row, int64_t causal, int64_t threads) {
    attend_sentences(out, queries, keys_values,
                     {cu_queries, cu_keys, sentences, heads, d_k, d_v, query_row, first_key, key_row}, causal != 0,
                     threads);
}

template <class T>
void gradients_of_all_sentences(T* d_queries, T* d_keys_values, const T* d_out, const T* queries, const T* keys_values,
                                const int32_t* cu_queries, const int32_t* cu_keys, int64_t sentences, int64_t heads,
                                int64_t d_k, int64_t d_v, int64_t query_row, int64_t first_key, int64_t key_row,
                                int64_t causal, int64_t threads) {
    gradients_of_sentences(d_queries, d_keys_values, d_out, queries, keys_values,
                           {cu_queries, cu_keys, sentences, heads, d_k, d_v, query_row, first_key, key_row},
                           causal != 0, threads);
}

template <class T>
void extended_sequences(const T* sequences, const int64_t* places, const T* last, T* out, int64_t slots, int64_t before,
                        int64_t width, int64_t length, int64_t number, int64_t threads) {
    extended<T>({sequences, places, out, slots, before, width, length}, last, number, threads);
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
#define OF_BOTH_FORMATS(name, function)        \
    auto* name##_float32 = function<float>;    \
    auto* name##_bfloat16 = function<bfloat16>;

extern "C" {
OF_BOTH_FORMATS(attend, attend)
OF_BOTH_FORMATS(negative_log_sum_exp, negative_log_sum_exp)
OF_BOTH_FORMATS(best, best)
OF_BOTH_FORMATS(add_norm, add_norm)
OF_BOTH_FORMATS(embed, embed_rows)
OF_BOTH_FORMATS(linear_rows, linear_rows)
OF_BOTH_FORMATS(best_of_rows, best_of_rows)
OF_BOTH_FORMATS(encoder_layers, all_encoder_layers)
OF_BOTH_FORMATS(decoder_step, whole_decoder_step)
OF_BOTH_FORMATS(attend_sentences, attend_all_sentences)
OF_BOTH_FORMATS(gradients_of_sentences, gradients_of_all_sentences)
OF_BOTH_FORMATS(residual_norm, residual_norm)
OF_BOTH_FORMATS(residual_norm_gradients, residual_norm_gradients)
OF_BOTH_FORMATS(logits_to_gradients, logits_to_gradients)
OF_BOTH_FORMATS(product, product)
auto* product_of_bfloat16_float32 = product<bfloat16, float>;
auto* extended_int32 = extended_sequences<int32_t>;
auto* extended_int64 = extended_sequences<int64_t>;
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
