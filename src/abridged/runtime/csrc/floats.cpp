// What Python calls for layers whose inputs stay as they are.
#include <new>

#include "share.hpp"

namespace abridged {
namespace {

const FloatKernels& floats_of(int32_t path) {
#if defined(ABRIDGED_X86)
  if (path == AVX2) return avx2_floats;
  if (path != PORTABLE) return avx512_floats;
#endif
  return portable_floats;
}

}  // namespace
}  // namespace abridged

using namespace abridged;

// Whether these sizes can be served: whole steps of 16 columns for each scale.
ABRIDGED_API int32_t abridged_serves_floats(int32_t book, int64_t columns, int64_t groups) {
  return LAYOUTS[book].bits > 0 && (groups == 1 || columns / groups % 16 == 0);
}

// 0: done; 1: no memory.
ABRIDGED_API int32_t abridged_linear_floats(const void* x, void* y, const void* packed, const float* scale,
                                            const int8_t* offset, const float* bias, int64_t tokens, int64_t rows,
                                            int64_t columns, int64_t row_bytes, int64_t num_scales, int32_t book,
                                            int32_t type, int32_t function, int32_t path, int64_t threads) {
  const Linear l{x, y, static_cast<const uint8_t*>(packed), scale, offset, bias, nullptr, nullptr,
                 tokens, rows, columns, row_bytes, num_scales, book, type, 0, function};
  const int64_t stride = round_up(columns, 16);
  float* memory = new (std::nothrow) float[size_t(tokens) * size_t(stride + l.groups())];
  if (!memory) return 1;
  const Inputs in{memory, memory + tokens * stride, stride};
  const FloatKernels& kernels = floats_of(path);
  kernels.widen(l, memory, memory + tokens * stride, stride);
  const int64_t most = tokens * rows * columns / WORTH_A_THREAD + 1, useful = most < threads ? most : threads;
  share(useful, rows, round_up((rows + 4 * useful - 1) / (4 * useful), 4),
        [&](int64_t first, int64_t last) { kernels.linear(l, in, first, last); });
  delete[] memory;
  return 0;
}

// Rows [first, last) of the weights themselves into y (last - first, columns).
ABRIDGED_API void abridged_dense(void* y, const void* packed, const float* scale, const int8_t* offset, int64_t first,
                                 int64_t last, int64_t rows, int64_t columns, int64_t row_bytes, int64_t num_scales,
                                 int32_t book, int32_t type, int32_t path, int64_t threads) {
  Linear l{};
  l.packed = static_cast<const uint8_t*>(packed), l.scale = scale, l.offset = offset, l.rows = rows;
  l.columns = columns, l.row_bytes = row_bytes, l.num_scales = num_scales, l.book = book, l.type = type;
  const FloatKernels& kernels = floats_of(path);
  share(threads, last - first, (last - first + 4 * threads - 1) / (4 * threads), [&](int64_t begin, int64_t end) {
    kernels.dense(l, static_cast<char*>(y) + begin * columns * (type == FLOAT32 ? 4 : 2), first + begin, first + end);
  });
}
