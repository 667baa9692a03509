// The functions that Python calls: choosing among instruction sets, embedding look-up.
#include <cstring>
#include <new>
#include <vector>

#include "share.hpp"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace abridged {

Team team = nullptr;

namespace {

bool allow_tiles() {  // Linux gives a process the large registers only when it asks
#if defined(__linux__) && defined(__x86_64__)
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XTILE_DATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILE_DATA) == 0;
#else
  return false;
#endif
}

bool runs(int32_t path) {
#if defined(ABRIDGED_X86)
  switch (path) {
    case PORTABLE: return true;
    case AVX2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case AVX512VNNI:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vnni");
    case AMX: {
      // bits 24 and 25 of leaf 7's EDX: the name is unknown to older compilers' __builtin_cpu_supports
      uint32_t a = 7, b, c = 0, d;
      __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
      static const bool tiles = (d >> 24 & 3) == 3 && runs(AVX512VNNI) && allow_tiles();
      return tiles;
    }
  }
  return false;
#else
  return path == PORTABLE;
#endif
}

const Kernels& kernels_of(int32_t path) {
#if defined(ABRIDGED_X86)
  switch (path) {
    case AVX2: return avx2_kernels;
    case AVX512VNNI: return avx512vnni_kernels;
    case AMX: return amx_kernels;
  }
#endif
  return portable_kernels;
}

constexpr int64_t CHUNK = 64, TILE_TOKENS = 32;
constexpr int64_t WIDENED = 1 << 18;  // bytes of codes that were taken apart

bool suits_tiles(const Linear& l) {
  const int64_t size = l.group_size(), per_byte = LAYOUTS[l.book].per_byte;
  return l.tokens >= 12 && (l.groups() == 1 || (size % 64 == 0 && size % per_byte == 0 &&
                                                (size / per_byte >= CHUNK ? size / per_byte % CHUNK == 0 : true)));
}

// For tiles: packed bytes whose codes stand together, of one group and of whole steps, leaving the fewest columns empty.
int64_t chunk_of_tiles(const Linear& l) {
  const int64_t per_byte = LAYOUTS[l.book].per_byte, group_bytes = l.group_size() / per_byte;
  if (l.groups() > 1) return group_bytes < CHUNK ? group_bytes : CHUNK;
  int64_t best = CHUNK;
  for (int64_t bytes = CHUNK / 2; bytes * per_byte % 64 == 0; bytes /= 2)
    if (round_up(l.row_bytes, bytes) < round_up(l.row_bytes, best)) best = bytes;
  return best;
}

// Codes of 3, 5 or 6 bits that lie across bytes, a byte each. Eight are a word, whose parts are halved three times: the
// upper half of each moves up, until one code is left to a byte.
void widen_row(int32_t book, const uint8_t* from, int64_t row_bytes, int64_t columns, uint8_t* to) {
  const int bits = LAYOUTS[book].bits;
  const uint64_t fours = (1ull << 4 * bits) - 1, twos = ((1ull << 2 * bits) - 1) * 0x0000000100000001u;
  const uint64_t ones = ((1ull << bits) - 1) * 0x0001000100010001u;
  for (int64_t column = 0; column < columns; column += 8, from += bits, row_bytes -= bits) {
    uint64_t word = 0;
    std::memcpy(&word, from, size_t(row_bytes < bits ? row_bytes : bits));
    word = (word & fours) | (word & ~fours) << (32 - 4 * bits);
    word = (word & twos) | (word & ~twos) << (16 - 2 * bits);
    word = (word & ones) | (word & ~ones) << (8 - bits);
    std::memcpy(to + column, &word, size_t(columns - column < 8 ? columns - column : 8));
  }
}

// `l` with the rows [first, last) widened into `memory`, whose columns lie beside each other.
Linear widened(const Linear& l, int32_t book, int64_t row_bytes, int64_t first, int64_t last, std::vector<uint8_t>& memory) {
  memory.resize(size_t((last - first) * l.columns));
  for (int64_t row = first; row < last; ++row)
    widen_row(book, l.packed + row * row_bytes, row_bytes, l.columns, memory.data() + (row - first) * l.columns);
  Linear wide = l;
  wide.packed = memory.data(), wide.first_packed = first, wide.byte_offset = LAYOUTS[book].offset;
  return wide;
}

template <int BOOK>
void look_up(const int64_t* ids, int64_t first, int64_t last, const Linear& l, float* y) {
  constexpr Layout layout = LAYOUTS[BOOK];
  const int64_t groups = l.groups(), size = l.group_size();
  const int lowest = BOOK == INT8 ? l.byte_offset : layout.offset;
  for (int64_t i = first; i < last; ++i) {
    const uint8_t* row = l.row_codes(ids[i]);
    const float* scales = l.row_scales(ids[i]);
    const int8_t* offsets = l.offsets_of(scales);
    float* to = y + i * l.columns;
    for (int64_t g = 0, column = 0; g < groups; ++g) {
      const float scale = scales[g], offset = float(lowest) + (offsets ? float(offsets[g]) : 0.0f);
      for (; column < (g + 1) * size; ++column) {
        int code = row[column / layout.per_byte];
        const int place = int(column % layout.per_byte);
        if (BOOK == TERNARY_BASE3) {
          constexpr int powers[] = {1, 3, 9, 27, 81};
          code = code / powers[place] % 3;
        } else {
          code = code >> (layout.bits * place) & ((1 << layout.bits) - 1);
        }
        to[column] = (float(layout.multiplier * code) + offset) * scale;
      }
    }
  }
}

}  // namespace
}  // namespace abridged

using namespace abridged;

// Counted up whenever a function here changes what it takes; kernels.py has the number that it knows.
ABRIDGED_API int32_t abridged_interface() { return 8; }

// Give the address of torch's GOMP_parallel, or null to start threads of our own for each call.
ABRIDGED_API void abridged_use_team(void* address) { team = reinterpret_cast<Team>(address); }

ABRIDGED_API int32_t abridged_runs(int32_t path) { return runs(path); }

// Whether `linear` can serve these sizes; the caller has checked that they fit the buffers.
ABRIDGED_API int32_t abridged_serves(int32_t book, int64_t columns, int64_t groups) {
  const Layout& layout = LAYOUTS[LAYOUTS[book].per_byte ? book : INT8];
  if (columns > 1 << 16) return 0;  // 32 bits could overflow
  return groups == 1 || (book != TERNARY_BASE3 && columns / groups % (4 * layout.per_byte) == 0);
}

// 0: done; 1: no memory; 2: the zero point is none of the input's levels, and the sums might not fit 32 bits.
ABRIDGED_API int32_t abridged_linear(const void* x, void* y, const void* packed, const float* scale, const int8_t* offset,
                                     const float* bias, const float* input_scale, const int32_t* input_zero_point,
                                     int64_t tokens, int64_t rows, int64_t columns, int64_t row_bytes,
                                     int64_t num_scales, int32_t book, int32_t type, int32_t input_bits, int32_t function, int32_t path, int64_t threads) {
  const bool across = LAYOUTS[book].per_byte == 0;
  const Linear l{x, y, static_cast<const uint8_t*>(packed), scale, offset, bias, input_scale, input_zero_point,
                 tokens, rows, columns, across ? columns : row_bytes, num_scales, across ? INT8 : book, type, input_bits, function};
  if (input_zero_point && (*input_zero_point < 0 || *input_zero_point >= 1 << input_bits)) return 2;
  if (tokens == 0) return 0;
  const Kernels& kernels = kernels_of(path);
  const bool tiles = kernels.linear_in_tiles && suits_tiles(l);
  const int64_t per_byte = LAYOUTS[l.book].per_byte, groups = l.groups();
  Tokens t;
  t.chunk_bytes = tiles ? chunk_of_tiles(l) : CHUNK;
  t.stride = round_up(l.row_bytes, t.chunk_bytes) * per_byte;
  t.zero = input_zero_point ? *input_zero_point - (input_bits == 8 ? 128 : 0) : 0;
  const int64_t held = tiles ? round_up(tokens, TILE_TOKENS) : tokens;
  // one allocation: scales, sums, ones, q
  const size_t numbers = size_t(tokens) * (1 + size_t(groups)) * 4;
  uint8_t* memory = new (std::nothrow) uint8_t[numbers + size_t(held + 1) * size_t(t.stride) + 64];
  if (!memory) return 1;
  t.scale = reinterpret_cast<float*>(memory);
  t.sums = reinterpret_cast<int32_t*>(memory + 4 * tokens);
  int8_t* q = reinterpret_cast<int8_t*>(memory) + round_up(int64_t(numbers), 64);
  t.ones = t.zero ? q : nullptr;
  t.q = q + t.stride;
  std::memset(t.q + tokens * t.stride, 0, size_t((held - tokens) * t.stride));
  const int64_t work = tokens * rows * columns;
  const int64_t useful = work / WORTH_A_THREAD + 1 < threads ? work / WORTH_A_THREAD + 1 : threads;
  share(tokens < 4 ? 1 : useful, tokens, tokens < 4 ? tokens : (tokens + 4 * useful - 1) / (4 * useful),
        [&](int64_t first, int64_t last) { kernels.quantize(l, t, first, last); });
  // Several pieces for each thread, as one may be held up; in tiles, whole blocks of 32 rows.
  const int64_t piece = round_up((rows + 4 * useful - 1) / (4 * useful), 32);
  const auto multiply = tiles ? kernels.linear_in_tiles : kernels.linear;
  share(useful, rows, piece, [&](int64_t first, int64_t last) {
    if (!across) return multiply(l, t, first, last);
    // Few enough rows to stay in the second cache.
    const int64_t together = round_up(WIDENED / columns, 32);
    std::vector<uint8_t> memory;
    for (int64_t row = first; row < last; row += together) {
      const int64_t end = row + together < last ? row + together : last;
      multiply(widened(l, book, row_bytes, row, end, memory), t, row, end);
    }
  });
  delete[] memory;
  return 0;
}

// 0: done; 1: an id is not a row.
ABRIDGED_API int32_t abridged_embedding(const int64_t* ids, float* y, const void* packed, const float* scale,
                                        const int8_t* offset, int64_t count, int64_t rows, int64_t columns, int64_t row_bytes,
                                        int64_t num_scales, int32_t book, int64_t threads) {
  Linear l{};
  l.packed = static_cast<const uint8_t*>(packed);
  l.scale = scale, l.offset = offset, l.rows = rows, l.columns = columns, l.row_bytes = row_bytes, l.num_scales = num_scales;
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= rows) return 1;
  share(count * columns < WORTH_A_THREAD ? 1 : threads, count, 16, [&](int64_t first, int64_t last) {
    std::vector<uint8_t> memory;
    if (LAYOUTS[book].per_byte == 0)
      for (int64_t i = first; i < last; ++i) {
        Linear wide = widened(l, book, row_bytes, ids[i], ids[i] + 1, memory);
        wide.row_bytes = columns;
        look_up<INT8>(ids, i, i + 1, wide, y);
      }
    else switch (book) {
      case BINARY: return look_up<BINARY>(ids, first, last, l, y);
      case TERNARY: return look_up<TERNARY>(ids, first, last, l, y);
      case TERNARY_BASE3: return look_up<TERNARY_BASE3>(ids, first, last, l, y);
      case QUATERNARY: return look_up<QUATERNARY>(ids, first, last, l, y);
      case INT4: return look_up<INT4>(ids, first, last, l, y);
      default: return look_up<INT8>(ids, first, last, l, y);
    }
  });
  return 0;
}

// Strides are in numbers.
ABRIDGED_API void abridged_attend(const float* query, const void* keys, const void* values, float* y, int64_t batch,
                                  int64_t heads, int64_t key_heads, int64_t length, int64_t width,
                                  int64_t key_batch_stride, int64_t key_head_stride, int64_t value_batch_stride,
                                  int64_t value_head_stride, float scale, int32_t type, int32_t path, int64_t threads) {
  const Attention a{query, keys, values, y, batch, heads, key_heads, length, width,
                    key_batch_stride, key_head_stride, value_batch_stride, value_head_stride, scale, type};
  const int64_t work = batch * heads * length * width, useful = work / WORTH_A_THREAD + 1;
  const Kernels& kernels = kernels_of(path);
  share(useful < threads ? useful : threads, batch * key_heads, 1,
        [&](int64_t first, int64_t last) { kernels.attend(a, first, last); });
}

// Whether this path has `attend_all`.
ABRIDGED_API int32_t abridged_attends_all(int32_t path) { return kernels_of(path).attend_all != nullptr; }

// Sizes are batch, heads, key heads, queries, length and width; strides are in numbers, as in ManyQueries.
ABRIDGED_API void abridged_attend_all(const float* query, const float* keys, const float* values, const uint8_t* mask,
                                      float* y, const int64_t* sizes, const int64_t* query_strides,
                                      const int64_t* key_strides, const int64_t* value_strides,
                                      const int64_t* mask_strides, float scale, int32_t causal, int32_t path,
                                      int64_t threads) {
  const ManyQueries a{query, keys, values, mask, y, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5],
                      query_strides, key_strides, value_strides, mask_strides, scale, causal};
  const int64_t work = a.batch * a.heads * a.queries * a.length * a.width, useful = work / WORTH_A_THREAD + 1;
  const int64_t items = a.batch * a.key_heads, usual = (items + 4 * threads - 1) / (4 * threads);
  const Kernels& kernels = kernels_of(path);
  share(useful < threads ? useful : threads, items, usual,
        [&](int64_t first, int64_t last) { kernels.attend_all(a, first, last); });
}
