// Many tokens at once: 16 tokens by 64 columns, times 64 columns by 16 rows of weights.
//
// As many rows of weights as the second cache holds are taken out of their bytes once; then all tokens pass by them, 32
// at a time, which stay in the first cache and write what lies beside each other. How a block is multiplied is the
// instruction set's own: `Multiplier<BOOK>` is begun and ended with the work of a thread, and has
//   void operator()(const int8_t* q, int64_t stride, const uint8_t* tiles, int64_t first, int64_t last, int64_t count,
//                   int32_t products[2][2 * TILE * TILE]);
// for `count` of 32 tokens from `q` on times 32 rows in `tiles`, over the columns of steps [first, last). A tile has 16
// rows by 64 columns, four columns of each row beside each other; products are 16 tokens by 16 rows each.
#pragma once
#include "linear.hpp"

namespace abridged {
namespace {

constexpr int TILE = 16, DEPTH = 64, TILE_BYTES = TILE * DEPTH;
constexpr int BLOCK_ROWS = 2 * TILE;
constexpr int64_t CACHED = 1 << 19;  // bytes of unpacked weights

// 16 rows of 16 32-bit numbers, `stride` bytes apart, become columns.
#if defined(__AVX512VNNI__)
void transpose(const uint8_t* from, int64_t stride, uint8_t* to) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(from + i * stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  // a[4 i + j] holds, for rows 4 i to 4 i + 3, columns j, 4 + j, 8 + j and 12 + j: one in each quarter
  for (int j = 0; j < 4; ++j) {
    const __m512i even_low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88), odd_low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
    _mm512_storeu_si512(to + 64 * j, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
    _mm512_storeu_si512(to + 64 * (8 + j), _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
    _mm512_storeu_si512(to + 64 * (4 + j), _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    _mm512_storeu_si512(to + 64 * (12 + j), _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
}
#else
void transpose(const uint8_t* from, int64_t stride, uint8_t* to) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) std::memcpy(to + 64 * j + 4 * i, from + i * stride + 4 * j, 4);
}
#endif

// What becomes of the products of a block's rows, for one group of their columns. In memory, since compilers put together
// anew what they know of single rows for every token.
struct Rows {
  float scales[BLOCK_ROWS];
  float offsets[BLOCK_ROWS];
  uint32_t zeros[BLOCK_ROWS];  // the zero point's part of the sums
  float bias[BLOCK_ROWS];
};

// Takes 16 rows (fewer at the end) out of their bytes and into tiles, one for every 64 columns, and what else is known of
// them into places `half` to `half` + 16 of `to`, one for each group.
template <int BOOK>
void unpack(const Linear& l, const Tokens& t, int64_t row, uint8_t* codes, uint8_t* tiles, int64_t half, Rows* to) {
  constexpr int places = LAYOUTS[BOOK].per_byte;
  constexpr uint32_t a = uint32_t(LAYOUTS[BOOK].multiplier);
  const uint32_t b = uint32_t(lowest<BOOK>(l));
  const int64_t count = l.rows - row < TILE ? l.rows - row : TILE, groups = l.groups(), depth = t.stride / groups;
  for (int64_t r = 0; r < count; ++r) {
    const uint8_t* packed = l.row_codes(row + r);
    uint8_t* code = codes + r * t.stride;
    for (int64_t byte = 0; byte < l.row_bytes; byte += t.chunk_bytes) {
      const int64_t left = l.row_bytes - byte;
      Bytes chunk = load(packed + byte, left < t.chunk_bytes ? left : t.chunk_bytes);
      for (int p = 0; p < places; ++p, code += t.chunk_bytes) store(code, next_codes<BOOK>(chunk, p));
    }
    for (int64_t g = 0; g < groups; ++g) {
      const float* scale = l.row_scales(row + r) + g;
      to[g].scales[half + r] = *scale;
      to[g].offsets[half + r] = l.offset ? float(*l.offsets_of(scale)) : 0.0f;
      to[g].bias[half + r] = l.bias ? l.bias[row + r] : 0.0f;
      if (t.zero == 0) continue;
      Sums sums = no_sums();
      for (int64_t k = g * depth; k < (g + 1) * depth; k += DEPTH)
        sums = dot<true>(sums, load(codes + r * t.stride + k), load(t.ones + k));
      to[g].zeros[half + r] = uint32_t(t.zero) * (a * uint32_t(total(sums)) + b * uint32_t(l.group_size()));
    }
  }
  for (int64_t k = 0; k < t.stride; k += DEPTH)
    transpose(codes + k, t.stride, tiles + k / DEPTH * 2 * TILE_BYTES + half / TILE * TILE_BYTES);
}

// Adds a group's products to the values of `count` tokens by 32 rows, all but the tokens' scales. The first group begins
// the values, and the last one's go to y instead.
template <int BOOK, typename T, bool FIRST, bool LAST>
void add_products(const Linear& l, const Tokens& t, const int32_t* products, int64_t token, int64_t count, int64_t group,
                  const Rows& rows, float* values, int64_t row, int64_t row_count) {
  constexpr uint32_t a = uint32_t(LAYOUTS[BOOK].multiplier);
  const uint32_t b = uint32_t(lowest<BOOK>(l));
  // what is written may, for all that compilers know, change what is read of l and t
  const int64_t groups = l.groups(), row_stride = l.rows;
  const int32_t zero_sum = t.zero * int32_t(l.group_size());
  const int32_t* sums = t.sums + token * groups + group;
  const float* token_scales = t.scale + token;
  T* y = static_cast<T*>(l.y) + token * row_stride + row;
  for (int64_t half = 0; half < BLOCK_ROWS && half < row_count; half += TILE) {
    const int64_t here = row_count - half < TILE ? row_count - half : TILE;
    const float *scales = rows.scales + half, *offsets = rows.offsets + half;
    const uint32_t* zeros = rows.zeros + half;
    const float* bias = rows.bias + half;
    for (int64_t k = 0; k < count; ++k) {
      const int32_t* product = products + half * TILE + k * TILE;
      float* value = values + k * BLOCK_ROWS + half;
      const uint32_t offset = b * uint32_t(sums[k * groups]);
      const float sum = float(sums[k * groups] - zero_sum), scale = LAST ? token_scales[k] : 1.0f;
      const auto made = [&](int64_t i) {
        const float levels = float(int32_t(a * uint32_t(product[i]) + offset - zeros[i]));
        const float part = (levels + offsets[i] * sum) * scales[i], all = FIRST ? part : part + value[i];
        return LAST ? all * scale + bias[i] : all;
      };
      T* to = y + k * row_stride + half;
      if constexpr (!LAST)
        for (int i = 0; i < TILE; ++i) value[i] = made(i);
      else if (here == TILE)  // so many that the compiler knows
        for (int i = 0; i < TILE; ++i) narrow(made(i), to + i);
      else
        for (int64_t i = 0; i < here; ++i) narrow(made(i), to + i);
    }
  }
}

template <int BOOK, typename T>
auto adding(bool first, bool last) {
  return first ? (last ? add_products<BOOK, T, true, true> : add_products<BOOK, T, true, false>)
               : (last ? add_products<BOOK, T, false, true> : add_products<BOOK, T, false, false>);
}

// The cache lines of y that a block of tokens by rows will write, asked for before they are needed.
inline void fetch_results(const Linear& l, int64_t token, int64_t row) {
  const int64_t size = l.type == FLOAT32 ? 4 : 2, end = token + 2 * TILE < l.tokens ? token + 2 * TILE : l.tokens;
  for (int64_t k = token; k < end; ++k) {
    const char* y = static_cast<const char*>(l.y) + (k * l.rows + row) * size;
    __builtin_prefetch(y, 1);
    if (size == 4) __builtin_prefetch(y + 64, 1);
  }
}

template <int BOOK, template <int> class Multiplier>
void tiles_of(const Linear& l, const Tokens& t, int64_t first, int64_t last) {
  const int64_t steps = t.stride / DEPTH, groups = l.groups(), group_steps = steps / groups;
  const int64_t block_bytes = BLOCK_ROWS * t.stride;
  const int64_t wanted = (last - first + BLOCK_ROWS - 1) / BLOCK_ROWS, fitting = CACHED / block_bytes;
  const int64_t blocks = fitting < 1 ? 1 : fitting < wanted ? fitting : wanted;
  uint8_t* codes = new uint8_t[size_t(TILE * t.stride + CHUNK)]();
  uint8_t* memory = new uint8_t[size_t(blocks * block_bytes + CHUNK)];
  uint8_t* tiles = memory + (CHUNK - reinterpret_cast<uintptr_t>(memory) % CHUNK) % CHUNK;  // whole lines of the cache
  Rows* rows = new Rows[size_t(blocks * groups)]();
  alignas(64) int32_t products[2][2 * TILE * TILE];
  alignas(64) float values[2][TILE * BLOCK_ROWS];
  Multiplier<BOOK> multiply;
  for (int64_t start = first; start < last; start += blocks * BLOCK_ROWS) {
    const int64_t end = start + blocks * BLOCK_ROWS < last ? start + blocks * BLOCK_ROWS : last;
    for (int64_t row = start; row < end; row += TILE) {
      const int64_t block = (row - start) / BLOCK_ROWS, half = (row - start) % BLOCK_ROWS;
      unpack<BOOK>(l, t, row, codes, tiles + block * block_bytes, half, rows + block * groups);
    }
    for (int64_t token = 0; token < l.tokens; token += 2 * TILE) {
      for (int64_t row = start; row < end; row += BLOCK_ROWS) {
        const int64_t block = (row - start) / BLOCK_ROWS, count = end - row < BLOCK_ROWS ? end - row : BLOCK_ROWS;
        fetch_results(l, token, row);
        for (int64_t g = 0; g < groups; ++g) {
          multiply(t.q + token * t.stride, t.stride, tiles + block * block_bytes, g * group_steps,
                   (g + 1) * group_steps, l.tokens - token, products);
          const bool first_group = g == 0, last_group = g == groups - 1;
          const auto add = l.type == FLOAT32 ? adding<BOOK, float>(first_group, last_group)
                                             : adding<BOOK, uint16_t>(first_group, last_group);
          for (int i = 0; i < 2; ++i) {
            const int64_t left = l.tokens - token - i * TILE;
            if (left > 0)
              add(l, t, products[i], token + i * TILE, left < TILE ? left : TILE, g, rows[block * groups + g], values[i],
                  row, count);
          }
        }
      }
    }
  }
  delete[] rows;
  delete[] memory;
  delete[] codes;
}

template <template <int> class Multiplier>
void linear_in_tiles(const Linear& l, const Tokens& t, int64_t first, int64_t last) {
  switch (l.book) {
    case BINARY: return tiles_of<BINARY, Multiplier>(l, t, first, last);
    case TERNARY: return tiles_of<TERNARY, Multiplier>(l, t, first, last);
    case TERNARY_BASE3: return tiles_of<TERNARY_BASE3, Multiplier>(l, t, first, last);
    case QUATERNARY: return tiles_of<QUATERNARY, Multiplier>(l, t, first, last);
    case INT4: return tiles_of<INT4, Multiplier>(l, t, first, last);
    default: return tiles_of<INT8, Multiplier>(l, t, first, last);
  }
}

}  // namespace
}  // namespace abridged

