// Softmax attention: of one query, which reads keys and values as they lie, and of many.
#pragma once
#include "linear.hpp"

namespace abridged {
namespace {

// Scores become e to the (score - the largest), those that `mask` leaves out 0; returns one by their sum, or 0 where all
// are left out. As in torch, a score that is NaN or +infinity, or nothing but -infinity, makes all of it NaN.
inline float to_weights(float* scores, const uint8_t* mask, int64_t n) {
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  float lanes[16], largest = lowest, sum = 0;  // since compilers may not reorder one maximum or sum
  if (mask)
    for (int64_t i = 0; i < n; ++i) scores[i] = mask[i] ? scores[i] : lowest;
  for (float& lane : lanes) lane = lowest;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) lanes[j] = scores[i + j] > lanes[j] ? scores[i + j] : lanes[j];
  for (; i < n; ++i) lanes[0] = scores[i] > lanes[0] ? scores[i] : lanes[0];
  for (float lane : lanes) largest = lane > largest ? lane : largest;
  for (i = 0; i < n; ++i) scores[i] = exponential(scores[i] - largest);
  if (mask)
    for (i = 0; i < n; ++i) scores[i] = mask[i] ? scores[i] : 0.0f;
  for (float& lane : lanes) lane = 0;
  for (i = 0; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) lanes[j] += scores[i + j];
  for (; i < n; ++i) lanes[0] += scores[i];
  for (float lane : lanes) sum += lane;
  return sum == 0 ? 0.0f : 1.0f / sum;
}

// ---- of one query

// What a query sees of `n` keys and values, each `width` numbers, and what stands before them, behind the one before. A key is multiplied with the query,
// and values are summed, in registers: of widths of VECTORS * 16; a loop over memory takes others (0).
template <typename T, int VECTORS>
void score(const float* query, const T* keys, int64_t n, int64_t width, float scale, float* scores) {
  if constexpr (VECTORS > 0) {
    Floats q[VECTORS];
    for (int v = 0; v < VECTORS; ++v) q[v] = load_floats(query + 16 * v);
    for (int64_t t = 0; t < n; ++t, keys += BEFORE<T> + 16 * VECTORS) {
      Floats sum = no_floats();
      for (int v = 0; v < VECTORS; ++v) sum = add_product(sum, q[v], load_floats(keys + BEFORE<T> + 16 * v));
      scores[t] = scale * scale_of(keys) * total(sum);
    }
  } else {
    for (int64_t t = 0; t < n; ++t, keys += BEFORE<T> + width) {
      const T* key = keys + BEFORE<T>;
      float lanes[16] = {}, sum = 0;
      int64_t i = 0;
      for (; i + 16 <= width; i += 16)
        for (int j = 0; j < 16; ++j) lanes[j] += query[i + j] * widen(key[i + j]);
      for (; i < width; ++i) sum += query[i] * widen(key[i]);
      for (float lane : lanes) sum += lane;
      scores[t] = scale * scale_of(keys) * sum;
    }
  }
}

template <typename T, int VECTORS>
void sum_up(const float* weights, const T* values, int64_t n, int64_t width, float* y) {
  if constexpr (VECTORS > 0) {
    Floats sums[VECTORS];
    for (Floats& sum : sums) sum = no_floats();
    for (int64_t t = 0; t < n; ++t, values += BEFORE<T> + 16 * VECTORS) {
      const Floats by = same(weights[t] * scale_of(values));
      for (int v = 0; v < VECTORS; ++v) sums[v] = add_product(sums[v], by, load_floats(values + BEFORE<T> + 16 * v));
    }
    for (int v = 0; v < VECTORS; ++v) store_floats(y + 16 * v, sums[v]);
  } else {
    std::memset(y, 0, size_t(width) * sizeof(float));
    for (int64_t t = 0; t < n; ++t, values += BEFORE<T> + width) {
      const float by = weights[t] * scale_of(values);
      for (int64_t i = 0; i < width; ++i) y[i] += by * widen(values[BEFORE<T> + i]);
    }
  }
}

template <typename T, int VECTORS>
void attend_of(const Attention& a, int64_t first, int64_t last) {
  const int64_t group = a.heads / a.key_heads, n = a.length, width = a.width;
  float* scores = new float[size_t(n)];
  for (int64_t item = first; item < last; ++item) {
    const int64_t batch = item / a.key_heads, head = item % a.key_heads;
    const T* keys = static_cast<const T*>(a.keys) + batch * a.key_batch_stride + head * a.key_head_stride;
    const T* values = static_cast<const T*>(a.values) + batch * a.value_batch_stride + head * a.value_head_stride;
    for (int64_t q = 0; q < group; ++q) {
      const int64_t at = (batch * a.heads + head * group + q) * width;
      score<T, VECTORS>(a.query + at, keys, n, width, a.scale, scores);
      const float inverse = to_weights(scores, nullptr, n);
      for (int64_t t = 0; t < n; ++t) scores[t] *= inverse;
      sum_up<T, VECTORS>(scores, values, n, width, a.y + at);
    }
  }
  delete[] scores;
}

template <typename T>
void attend_typed(const Attention& a, int64_t first, int64_t last) {
#if defined(__AVX2__)
  switch (a.width) {
    case 32: return attend_of<T, 2>(a, first, last);
    case 64: return attend_of<T, 4>(a, first, last);
    case 80: return attend_of<T, 5>(a, first, last);
    case 96: return attend_of<T, 6>(a, first, last);
    case 128: return attend_of<T, 8>(a, first, last);
    case 256: return attend_of<T, 16>(a, first, last);
  }
#endif
  attend_of<T, 0>(a, first, last);
}

void attend(const Attention& a, int64_t first, int64_t last) {
  switch (a.type) {
    case FLOAT32: return attend_typed<float>(a, first, last);
    case BFLOAT16: return attend_typed<uint16_t>(a, first, last);
    default: return attend_typed<int8_t>(a, first, last);
  }
}

#if defined(__AVX2__)
// ---- of many queries: each block of them against all keys that it may see, head by head

#if defined(__AVX512VNNI__)
constexpr int QUERIES = 8, VECTORS = 2;  // as many sums as registers hold beside their operands
#else
constexpr int QUERIES = 6, VECTORS = 1;
#endif
constexpr int64_t COLUMNS = 16 * VECTORS;

// c (QUERIES, COLUMNS) = a (QUERIES, depth) times b (depth, COLUMNS).
inline void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, float* c,
                     int64_t c_stride) {
  Floats sums[QUERIES][VECTORS];
  UNROLL_8 for (auto& row : sums) for (Floats& sum : row) sum = no_floats();
  for (int64_t k = 0; k < depth; ++k) {
    Floats from[VECTORS];
    for (int v = 0; v < VECTORS; ++v) from[v] = load_floats(b + k * b_stride + 16 * v);
    UNROLL_8 for (int q = 0; q < QUERIES; ++q) {
      const Floats by = same(a[q * a_stride + k]);
      for (int v = 0; v < VECTORS; ++v) sums[q][v] = add_product(sums[q][v], by, from[v]);
    }
  }
  UNROLL_8 for (int q = 0; q < QUERIES; ++q)
    for (int v = 0; v < VECTORS; ++v) store_floats(c + q * c_stride + 16 * v, sums[q][v]);
}

void attend_all(const ManyQueries& a, int64_t first, int64_t last) {
  const int64_t group = a.heads / a.key_heads, n = a.length, width = a.width;
  const int64_t columns = (n + COLUMNS - 1) / COLUMNS * COLUMNS, wide = (width + COLUMNS - 1) / COLUMNS * COLUMNS;
  float* keys = new float[size_t(columns * width)]();  // (n / COLUMNS, width, COLUMNS)
  float* values = new float[size_t(n * wide)]();       // (n, wide)
  float* queries = new float[size_t(QUERIES * width)];
  float* scores = new float[size_t(QUERIES * columns)];
  float* made = new float[size_t(QUERIES * wide)];
  for (int64_t item = first; item < last; ++item) {
    const int64_t batch = item / a.key_heads, key_head = item % a.key_heads;
    const float* from_keys = a.keys + batch * a.key_strides[0] + key_head * a.key_strides[1];
    const float* from_values = a.values + batch * a.value_strides[0] + key_head * a.value_strides[1];
    for (int64_t k = 0; k < n; ++k) {
      float* to = keys + k / COLUMNS * COLUMNS * width + k % COLUMNS;
      for (int64_t i = 0; i < width; ++i) to[i * COLUMNS] = from_keys[k * a.key_strides[2] + i];
      std::memcpy(values + k * wide, from_values + k * a.value_strides[2], size_t(width) * sizeof(float));
    }
    for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
      for (int64_t start = 0; start < a.queries; start += QUERIES) {
        const int64_t count = a.queries - start < QUERIES ? a.queries - start : QUERIES;
        const int64_t seen = a.causal && start + count < n ? start + count : n;  // by any of these queries
        for (int64_t q = 0; q < QUERIES; ++q) {
          const int64_t row = start + (q < count ? q : count - 1);
          const float* from = a.query + batch * a.query_strides[0] + head * a.query_strides[1] + row * a.query_strides[2];
          for (int64_t i = 0; i < width; ++i) queries[q * width + i] = from[i] * a.scale;
        }
        for (int64_t k = 0; k < seen; k += COLUMNS)
          multiply(queries, width, keys + k * width, COLUMNS, width, scores + k, columns);
        float sums[QUERIES];
        for (int64_t q = 0; q < QUERIES; ++q) {
          const int64_t row = start + (q < count ? q : count - 1), mine = a.causal && row + 1 < seen ? row + 1 : seen;
          const uint8_t* mask = a.mask ? a.mask + batch * a.mask_strides[0] + row * a.mask_strides[1] : nullptr;
          sums[q] = to_weights(scores + q * columns, mask, mine);
          for (int64_t k = mine; k < seen; ++k) scores[q * columns + k] = 0;
        }
        for (int64_t i = 0; i < wide; i += COLUMNS) multiply(scores, columns, values + i, wide, seen, made + i, wide);
        for (int64_t q = 0; q < count; ++q) {
          float* y = a.y + ((batch * a.queries + start + q) * a.heads + head) * width;
          for (int64_t i = 0; i < width; ++i) y[i] = made[q * wide + i] * sums[q];
        }
      }
    }
  }
  delete[] made;
  delete[] scores;
  delete[] queries;
  delete[] values;
  delete[] keys;
}
#endif

}  // namespace
}  // namespace abridged
