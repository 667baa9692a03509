// What Python calls for layers whose inputs stay as they are.
#include "share.hpp"

namespace abridged {

const FloatKernels& floats_of(int32_t path) {
#if defined(ABRIDGED_X86)
  if (path == AVX2) return avx2_floats;
  if (path != PORTABLE) return avx512_floats;
#endif
  return portable_floats;
}

}  // namespace abridged

using namespace abridged;

// Whether these sizes can be served: whole steps of 16 columns for each scale.
ABRIDGED_API int32_t abridged_serves_floats(int32_t book, int64_t columns, int64_t groups) {
  return LAYOUTS[book].bits > 0 && (groups == 1 || columns / groups % 16 == 0);
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
