// What translation does between its matrix products, for processors. Each function has its plain reference in PyTorch
// beside the Python function that calls it (`native.call`): in row_attention.py, topk.py, add_norm.py, quantized_linear.py.
//
// Loops are written so that compilers vectorise them; nothing here knows an instruction set. Rows are computed each by
// itself, in a fixed order: what comes out for one does not depend on which others there are, nor on `threads`.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

struct bfloat16 {
    uint16_t bits;
};

inline float widen(float x) { return x; }

inline float widen(bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline void narrow(float x, float& out) { out = x; }

inline void narrow(float x, bfloat16& out) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    // To the nearest, of two equally near ones to the even one; not-a-number stays one.
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out.bits = uint16_t(x != x ? 0x7fc0 : rounded);
}

// e^x for x <= 0, to 2e-7 of its value; below -87 that of -87, which is nothing beside the e^0 of every sum here.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    const float n = std::nearbyint(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = (int32_t(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

template <class T>
float largest(const T* x, int64_t count) {
    float most = -infinity;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < count; i++) most = most < widen(x[i]) ? widen(x[i]) : most;
    return most;
}

template <class T>
float sum_of_exponentials(const T* x, int64_t count, float most) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) sum += exponential(widen(x[i]) - most);
    return sum;
}

template <class T>
float dot(const float* x, const T* y, int64_t count) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) sum += x[i] * widen(y[i]);
    return sum;
}

template <class Compute>
void for_each(int64_t rows, int64_t threads, Compute compute) {
    // A handful of rows takes less time than waking another thread.
#pragma omp parallel for num_threads(int(threads)) if (threads > 1 && rows >= 64)
    for (int64_t row = 0; row < rows; row++) compute(row);
}

template <class T>
void attend(const T* queries, const T* keys_values, const int32_t* lists, const int32_t* list_of, T* out, int64_t rows,
            int64_t longest, int64_t heads, int64_t d_k, int64_t d_v, int64_t threads) {
    const int64_t keys = heads * d_k, values = heads * d_v;
    const float scale = 1.0f / std::sqrt(float(d_k));
    for_each(rows, threads, [=](int64_t row) {
        const int32_t* seen = lists + list_of[row] * longest;
        int64_t count = 0;
        while (count < longest && seen[count] >= 0) count++;
        std::vector<float> query(keys), weights(heads * count), sums(values);
        for (int64_t i = 0; i < keys; i++) query[i] = widen(queries[row * keys + i]) * scale;
        for (int64_t t = 0; t < count; t++)
            for (int64_t head = 0; head < heads; head++) {
                const T* key = keys_values + seen[t] * (keys + values) + head * d_k;
                weights[head * count + t] = dot(&query[head * d_k], key, d_k);
            }
        for (int64_t head = 0; head < heads; head++) {
            float* own = &weights[head * count];
            const float most = largest(own, count), sum = sum_of_exponentials(own, count, most);
            for (int64_t t = 0; t < count; t++) own[t] = exponential(own[t] - most) / sum;
        }
        for (int64_t t = 0; t < count; t++)
            for (int64_t head = 0; head < heads; head++) {
                const float weight = weights[head * count + t];
                const T* value = keys_values + seen[t] * (keys + values) + keys + head * d_v;
                float* sum = &sums[head * d_v];
                for (int64_t i = 0; i < d_v; i++) sum[i] += weight * widen(value[i]);
            }
        for (int64_t i = 0; i < values; i++) narrow(sums[i], out[row * values + i]);
    });
}

template <class T>
void log_sum_exp(const T* logits, float* out, int64_t rows, int64_t vocabulary, int64_t threads) {
    for_each(rows, threads, [=](int64_t row) {
        const T* own = logits + row * vocabulary;
        const float most = largest(own, vocabulary);
        out[row] = most + std::log(sum_of_exponentials(own, vocabulary, most));
    });
}

// The `count` highest sums of a total and a score in each slot, highest first, and where they are.
template <class T>
void best(const T* scores, const float* totals, float* found, int64_t* places, int64_t slots, int64_t width,
          int64_t vocabulary, int64_t count, int64_t threads) {
    constexpr int64_t block = 64;
    for_each(slots, threads, [=](int64_t slot) {
        float* sums = found + slot * count;
        int64_t* where = places + slot * count;
        for (int64_t i = 0; i < count; i++) sums[i] = -infinity, where[i] = i;
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
                    sums[rank] = sums[rank - 1], where[rank] = where[rank - 1];
                sums[rank] = sum, where[rank] = place + i;
            }
        }
    });
}

template <class T>
void add_norm(const T* x, const T* y, const T* weight, const T* bias, T* out, int64_t rows, int64_t columns,
              int64_t threads) {
    constexpr float epsilon = 1e-5f;
    for_each(rows, threads, [=](int64_t row) {
        std::vector<float> sums(columns);
        float total = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < columns; i++)
            total += sums[i] = widen(x[row * columns + i]) + widen(y[row * columns + i]);
        const float mean = total / float(columns);
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < columns; i++) squares += (sums[i] - mean) * (sums[i] - mean);
        const float scale = 1.0f / std::sqrt(squares / float(columns) + epsilon);
        for (int64_t i = 0; i < columns; i++)
            narrow((sums[i] - mean) * scale * widen(weight[i]) + widen(bias[i]), out[row * columns + i]);
    });
}

// A row on a line of `levels` even steps on both sides of zero, which is written as levels + 1; returns their size: not a
// number where one in the row is none, or infinite.
float round_row(const float* x, uint8_t* out, int64_t columns, int64_t levels) {
    float most = 0.0f, strange = 0.0f;
#pragma omp simd reduction(max : most) reduction(+ : strange)
    for (int64_t i = 0; i < columns; i++) {
        most = most < std::fabs(x[i]) ? std::fabs(x[i]) : most;
        strange += x[i] * 0.0f;
    }
    if (strange != 0.0f) {
        std::memset(out, 0, columns);
        return strange;
    }
    const float step = std::fmax(most / float(levels), 1e-12f), inverse = 1.0f / step, zero = float(levels + 1);
    for (int64_t i = 0; i < columns; i++) out[i] = uint8_t(int32_t(std::nearbyint(x[i] * inverse) + zero));
    return step;
}

void finish_row(float* x, float step, const float* bias, int64_t columns, int64_t rectify) {
    const float least = rectify ? 0.0f : -infinity;
    for (int64_t i = 0; i < columns; i++) {
        const float value = x[i] * step + bias[i];
        x[i] = value < least ? least : value;
    }
}

}  // namespace

#define FOR_BOTH_FORMATS(format, T)                                                                                    \
    void attend_##format(const T* queries, const T* keys_values, const int32_t* lists, const int32_t* list_of, T* out, \
                         int64_t rows, int64_t longest, int64_t heads, int64_t d_k, int64_t d_v, int64_t threads) {    \
        attend(queries, keys_values, lists, list_of, out, rows, longest, heads, d_k, d_v, threads);                    \
    }                                                                                                                  \
    void log_sum_exp_##format(const T* logits, float* out, int64_t rows, int64_t vocabulary, int64_t threads) {        \
        log_sum_exp(logits, out, rows, vocabulary, threads);                                                           \
    }                                                                                                                  \
    void best_##format(const T* scores, const float* totals, float* found, int64_t* places, int64_t slots,             \
                       int64_t width, int64_t vocabulary, int64_t count, int64_t threads) {                            \
        best(scores, totals, found, places, slots, width, vocabulary, count, threads);                                 \
    }                                                                                                                  \
    void add_norm_##format(const T* x, const T* y, const T* weight, const T* bias, T* out, int64_t rows,               \
                           int64_t columns, int64_t threads) {                                                         \
        add_norm(x, y, weight, bias, out, rows, columns, threads);                                                     \
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

// x·Wᵀ + b with weights in int8. The sum over (x + zero)·w is the wanted one and `zero` times the sum of w.
void linear_int8_float32(const float* x, const int8_t* weight, const float* scales, const int32_t* sums,
                         const float* bias, float* out, int64_t rows, int64_t inputs, int64_t outputs, int64_t levels,
                         int64_t rectify, int64_t threads) {
    const int32_t zero = int32_t(levels) + 1;
    for_each(rows, threads, [=](int64_t row) {
        std::vector<uint8_t> rounded(inputs);
        const float step = round_row(x + row * inputs, rounded.data(), inputs, levels);
        for (int64_t o = 0; o < outputs; o++) {
            const uint8_t* given = rounded.data();
            const int8_t* own = weight + o * inputs;
            int32_t sum = 0;
            for (int64_t i = 0; i < inputs; i++) sum += int32_t(given[i]) * int32_t(own[i]);
            out[row * outputs + o] = float(sum - zero * sums[o]) * scales[o];
        }
        finish_row(out + row * outputs, step, bias, outputs, rectify);
    });
}
}
