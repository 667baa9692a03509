// The functions that Python calls: choosing among instruction sets, embedding look-up.
#include <cstring>
#include <new>
#include <vector>

#include "product.hpp"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace abridged {

Team team = nullptr;

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
ABRIDGED_API int32_t abridged_interface() { return 10; }

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
ABRIDGED_API int32_t abridged_linear(const void* x, void* y, const void* packed, const float* scale,
                                     const int8_t* offset, const float* bias, const float* input_scale,
                                     const int32_t* input_zero_point, int64_t tokens, int64_t rows, int64_t columns,
                                     int64_t row_bytes, int64_t num_scales, int32_t book, int32_t type,
                                     int32_t input_bits, int32_t function, int32_t path, int64_t threads) {
  const Linear l{x, y, static_cast<const uint8_t*>(packed), scale, offset, bias, input_scale, input_zero_point,
                 tokens, rows, columns, row_bytes, num_scales, book, type, input_bits, function};
  if (tokens == 0) return 0;
  Product product(l, path);
  if (!product.possible()) return 2;
  uint8_t* memory = new (std::nothrow) uint8_t[product.bytes()];
  if (!memory) return 1;
  product.lend(memory);
  const int64_t most = tokens * rows * columns / WORTH_A_THREAD + 1, useful = most < threads ? most : threads;
  if (product.rounds())
    share(tokens < 4 ? 1 : useful, tokens, tokens < 4 ? tokens : (tokens + 4 * useful - 1) / (4 * useful),
          [&](int64_t first, int64_t last) { product.make_ready(first, last); });
  else
    product.make_ready(0, tokens);
  share(useful, rows, product.piece(useful), [&](int64_t first, int64_t last) { product.multiply(first, last); });
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
