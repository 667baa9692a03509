// Layers whose inputs stay as they are: tokens in FP32 times packed weights.
//
// Sixteen codes of a row, which lie in 2 * bits bytes whatever the bits, become sixteen levels in FP32 at a time, in the
// order of columns. They meet the same columns of some tokens; what a group sums to is multiplied by its scale once.
#pragma once
#include <type_traits>

#include "linear.hpp"

namespace abridged {
namespace {

constexpr int LANES = 16;

// Takes 16 codes out of bytes, of which 16 may be read, as levels.
#if defined(__AVX512VNNI__)
template <int BOOK>
struct Levels {
  static constexpr int BITS = LAYOUTS[BOOK].bits;
  __m512i bytes, shifts;
  Floats table;  // of up to four bits: the lowest bits of the next code may stand above
  Levels() {
    alignas(64) int32_t from[16], by[16];
    alignas(64) float levels[16];
    for (int i = 0; i < 16; ++i) {
      const int bit = BITS * i;
      from[i] = BITS < 3 ? 0 : int32_t(0x80800000u | uint32_t(bit / 8 + 1) << 8 | uint32_t(bit / 8));
      by[i] = BITS < 3 ? bit : bit % 8;
      levels[i] = float(LAYOUTS[BOOK].multiplier * (i & ((1 << BITS) - 1)) + LAYOUTS[BOOK].offset);
    }
    bytes = _mm512_load_si512(from), shifts = _mm512_load_si512(by), table = _mm512_load_ps(levels);
  }
  Floats operator()(const uint8_t* from) const {
    if constexpr (BITS == 8) {
      const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
      return _mm512_cvtepi32_ps(_mm512_add_epi32(codes, _mm512_set1_epi32(LAYOUTS[BOOK].offset)));
    } else {
      __m512i codes;
      if constexpr (BITS < 3) {
        uint32_t word = 0;
        std::memcpy(&word, from, 2 * BITS);
        codes = _mm512_set1_epi32(int32_t(word));
      } else {
        codes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        codes = _mm512_shuffle_epi8(codes, bytes);
      }
      codes = _mm512_srlv_epi32(codes, shifts);
      if constexpr (BITS <= 4) return _mm512_permutexvar_ps(codes, table);
      codes = _mm512_and_si512(codes, _mm512_set1_epi32((1 << BITS) - 1));
      return _mm512_cvtepi32_ps(_mm512_add_epi32(codes, _mm512_set1_epi32(LAYOUTS[BOOK].offset)));
    }
  }
};
#elif defined(__AVX2__)
template <int BOOK>
struct Levels {
  static constexpr int BITS = LAYOUTS[BOOK].bits;
  __m256i bytes[2], shifts[2];
  __m256 table;  // of up to three bits: the lowest bits of the next code may stand above
  Levels() {
    int32_t from[16], by[16];
    float levels[8];
    for (int i = 0; i < 16; ++i) {
      const int bit = BITS * i;
      from[i] = BITS < 3 ? 0 : int32_t(0x80800000u | uint32_t(bit / 8 + 1) << 8 | uint32_t(bit / 8));
      by[i] = BITS < 3 ? bit : bit % 8;
      levels[i % 8] = float(LAYOUTS[BOOK].multiplier * (i % 8 & ((1 << BITS) - 1)) + LAYOUTS[BOOK].offset);
    }
    table = _mm256_loadu_ps(levels);
    for (int h = 0; h < 2; ++h) {
      bytes[h] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 8 * h));
      shifts[h] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(by + 8 * h));
    }
  }
  Floats operator()(const uint8_t* from) const {
    Floats f;
    __m256i all = _mm256_setzero_si256();
    if constexpr (BITS < 3) {
      uint32_t word = 0;
      std::memcpy(&word, from, 2 * BITS);
      all = _mm256_set1_epi32(int32_t(word));
    } else if constexpr (BITS < 8) {
      all = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    for (int h = 0; h < 2; ++h) {
      __m256i codes = all;
      if constexpr (BITS == 8) codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * h)));
      else codes = _mm256_srlv_epi32(BITS < 3 ? all : _mm256_shuffle_epi8(all, bytes[h]), shifts[h]);
      if constexpr (BITS < 4) {
        f.v[h] = _mm256_permutevar8x32_ps(table, codes);
      } else {
        codes = _mm256_and_si256(codes, _mm256_set1_epi32((1 << BITS) - 1));
        f.v[h] = _mm256_cvtepi32_ps(_mm256_add_epi32(codes, _mm256_set1_epi32(LAYOUTS[BOOK].offset)));
      }
    }
    return f;
  }
};
#else
template <int BOOK>
struct Levels {
  Floats operator()(const uint8_t* from) const {
    constexpr int bits = LAYOUTS[BOOK].bits;
    Floats f;
    for (int i = 0; i < LANES; ++i) {
      const int bit = bits * i;
      const uint32_t two = bits == 8 ? from[i] : from[bit / 8] | uint32_t(from[bit / 8 + 1]) << 8;
      const int code = int(two >> (bits == 8 ? 0 : bit % 8)) & ((1 << bits) - 1);
      f.v[i] = float(LAYOUTS[BOOK].multiplier * code + LAYOUTS[BOOK].offset);
    }
    return f;
  }
};
#endif

#if defined(__AVX512VNNI__)
constexpr int FLOAT_TOKENS = 4;
#elif defined(__AVX2__)
constexpr int FLOAT_TOKENS = 2;
#else
constexpr int FLOAT_TOKENS = 1;
#endif

// 16 bytes from there on that may be read, beyond the `end` of all codes zeros.
inline const uint8_t* padded(const uint8_t* from, const uint8_t* end, uint8_t* room) {
  if (end - from >= LANES) return from;
  std::memset(room, 0, LANES);
  if (end > from) std::memcpy(room, from, size_t(end - from));
  return room;
}

// INSIDE: 16 bytes may be read wherever codes of these rows begin.
template <int BOOK, int ROWS, int TOKENS, bool INSIDE>
void float_block(const Linear& l, const Inputs& in, int64_t row, int64_t token) {
  constexpr int step = 2 * LAYOUTS[BOOK].bits;  // bytes
  const Levels<BOOK> levels;
  const int64_t groups = l.groups(), size = groups == 1 ? in.stride : l.group_size();
  const uint8_t *end = l.packed + l.rows * l.row_bytes, *from = l.row_codes(row);
  uint8_t room[LANES];
  Floats values[ROWS][TOKENS];
  UNROLL for (int r = 0; r < ROWS; ++r)
    UNROLL for (int k = 0; k < TOKENS; ++k) values[r][k] = no_floats();
  for (int64_t g = 0, column = 0; g < groups; ++g) {
    Floats sums[ROWS][TOKENS];
    UNROLL for (int r = 0; r < ROWS; ++r)
      UNROLL for (int k = 0; k < TOKENS; ++k) sums[r][k] = no_floats();
    for (; column < (g + 1) * size; column += LANES, from += step) {
      const float* x = in.x + token * in.stride + column;
      UNROLL for (int r = 0; r < ROWS; ++r) {
        const uint8_t* codes = from + r * l.row_bytes;
        const Floats of_row = levels(INSIDE ? codes : padded(codes, end, room));
        UNROLL for (int k = 0; k < TOKENS; ++k) sums[r][k] = add_product(sums[r][k], of_row, load_floats(x + k * in.stride));
      }
    }
    UNROLL for (int r = 0; r < ROWS; ++r) {
      const Floats scale = same(l.row_scales(row + r)[g]);
      UNROLL for (int k = 0; k < TOKENS; ++k) values[r][k] = add_product(values[r][k], sums[r][k], scale);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    const float* scales = l.row_scales(row + r);
    const int8_t* offsets = l.offsets_of(scales);
    for (int k = 0; k < TOKENS; ++k) {
      float value = total(values[r][k]);
      for (int64_t g = 0; offsets && g < groups; ++g) value += scales[g] * float(offsets[g]) * in.sums[(token + k) * groups + g];
      if (l.type == FLOAT32) write<float>(l, token + k, row + r, value);
      else write<uint16_t>(l, token + k, row + r, value);
    }
  }
}

template <int BOOK, int TOKENS>
void float_rows(const Linear& l, const Inputs& in, int64_t first, int64_t last, int64_t token) {
  constexpr int ROWS = 4;
  const int64_t inside = l.rows - 1 - LANES / l.row_bytes;  // rows with 16 bytes behind each of theirs
  int64_t row = first;
  for (; row + ROWS <= last && row + ROWS <= inside; row += ROWS) float_block<BOOK, ROWS, TOKENS, true>(l, in, row, token);
  for (; row < last; ++row)
    for (int k = 0; k < TOKENS; ++k) float_block<BOOK, 1, 1, false>(l, in, row, token + k);
}

template <int BOOK>
void floats_of(const Linear& l, const Inputs& in, int64_t first, int64_t last) {
  int64_t token = 0;
  for (; token + FLOAT_TOKENS <= l.tokens; token += FLOAT_TOKENS) float_rows<BOOK, FLOAT_TOKENS>(l, in, first, last, token);
  for (; token < l.tokens; ++token) float_rows<BOOK, 1>(l, in, first, last, token);
}

// Rows of the matrix itself.
template <int BOOK, typename T>
void dense_of(const Linear& l, T* to, int64_t first, int64_t last) {
  const Levels<BOOK> levels;
  const int64_t groups = l.groups(), size = l.group_size();
  const uint8_t* end = l.packed + l.rows * l.row_bytes;
  uint8_t room[LANES];
  for (int64_t row = first; row < last; ++row, to += l.columns) {
    const uint8_t* from = l.row_codes(row);
    const float* scales = l.row_scales(row);
    const int8_t* offsets = l.offsets_of(scales);
    for (int64_t column = 0; column < l.columns; column += LANES, from += 2 * LAYOUTS[BOOK].bits) {
      const int64_t g = groups == 1 ? 0 : column / size;
      float weights[LANES];
      store_floats(weights, levels(padded(from, end, room)));
      const float scale = scales[g], offset = offsets ? float(offsets[g]) : 0.0f;
      for (int i = 0; i < LANES; ++i) weights[i] = (weights[i] + offset) * scale;
      const int64_t count = l.columns - column < LANES ? l.columns - column : LANES;
      for (int64_t i = 0; i < count; ++i) narrow(weights[i], to + column + i);
    }
  }
}

// run(book) for the book of a weight, as a type.
template <typename Run>
void with_book(int32_t book, const Run& run) {
  switch (book) {
    case BINARY: return run(std::integral_constant<int, BINARY>());
    case TERNARY: return run(std::integral_constant<int, TERNARY>());
    case QUATERNARY: return run(std::integral_constant<int, QUATERNARY>());
    case INT3: return run(std::integral_constant<int, INT3>());
    case INT4: return run(std::integral_constant<int, INT4>());
    case INT5: return run(std::integral_constant<int, INT5>());
    case INT6: return run(std::integral_constant<int, INT6>());
    default: return run(std::integral_constant<int, INT8>());
  }
}

void linear_in_floats(const Linear& l, const Inputs& in, int64_t first, int64_t last) {
  with_book(l.book, [&](auto book) { floats_of<decltype(book)::value>(l, in, first, last); });
}

void dense(const Linear& l, void* to, int64_t first, int64_t last) {
  with_book(l.book, [&](auto book) {
    constexpr int BOOK = decltype(book)::value;
    l.type == FLOAT32 ? dense_of<BOOK>(l, static_cast<float*>(to), first, last)
                      : dense_of<BOOK>(l, static_cast<uint16_t*>(to), first, last);
  });
}

template <typename T>
void widen_tokens(const Linear& l, float* x, float* sums, int64_t stride) {
  const int64_t groups = l.groups(), size = l.group_size();
  for (int64_t token = 0; token < l.tokens; ++token) {
    const T* from = static_cast<const T*>(l.x) + token * l.columns;
    float* to = x + token * stride;
    if (l.function == IDENTITY)
      for (int64_t i = 0; i < l.columns; ++i) to[i] = widen(from[i]);
    else
      apply(l.function, from, l.columns, to);
    for (int64_t i = l.columns; i < stride; ++i) to[i] = 0.0f;
    for (int64_t g = 0; g < groups; ++g) {
      float lanes[LANES] = {};  // since compilers may not reorder one sum
      for (int64_t i = 0; i < size; ++i) lanes[i % LANES] += to[g * size + i];
      float sum = 0.0f;
      for (float lane : lanes) sum += lane;
      sums[token * groups + g] = sum;
    }
  }
}

// The tokens in FP32, rows of `stride` numbers with zeros behind the columns, and their sums over each group.
void widen_all(const Linear& l, float* x, float* sums, int64_t stride) {
  l.type == FLOAT32 ? widen_tokens<float>(l, x, sums, stride) : widen_tokens<uint16_t>(l, x, sums, stride);
}

}  // namespace
}  // namespace abridged
