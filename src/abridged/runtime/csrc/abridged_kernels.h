// What Python calls (by ctypes) and what the instruction sets implement. No dependence on torch.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define ABRIDGED_API extern "C" __declspec(dllexport)
#else
#define ABRIDGED_API extern "C" __attribute__((visibility("default")))
#endif

namespace abridged {

enum Book : int32_t { BINARY, TERNARY, TERNARY_BASE3, QUATERNARY, INT4, INT8, INT3, INT5, INT6 };
enum Type : int32_t { FLOAT32, BFLOAT16, SCALED_INT8 };  // the last of keys and values alone
enum Function : int32_t { IDENTITY, GELU_TANH, GELU, SILU, RELU, RELU2, GELU_SIGMOID };  // of a Linear the first three
enum Path : int32_t { PORTABLE, AVX2, AVX512VNNI, AMX };

// A code is unsigned, a level is multiplier * code + offset. Codes lie `per_byte` to a byte, in the order of columns; those
// that lie across bytes (0) are widened, a block of rows at a time, to a byte each, as INT8's are.
struct Layout {
  int per_byte, bits, multiplier, offset;
};
constexpr Layout LAYOUTS[] = {{8, 1, 2, -1}, {4, 2, 1, -1}, {5, 0, 1, -1}, {4, 2, 2, -3}, {2, 4, 1, -7}, {1, 8, 1, -127},
                              {0, 3, 1, -3}, {0, 5, 1, -15}, {0, 6, 1, -31}};

// y = scale * (levels + offset) . q(function(x)) + bias, for `tokens` rows of x (columns each) and of y (rows each).
struct Linear {
  const void* x;
  void* y;
  const uint8_t* packed;
  const float* scale;   // each covers rows * columns / num_scales consecutive weights
  const int8_t* offset;  // as many, added to the levels that each scale covers; or null
  const float* bias;    // or null
  const float* input_scale;         // null: each token by its own largest value
  const int32_t* input_zero_point;  // null: symmetric
  int64_t tokens, rows, columns, row_bytes, num_scales;
  int32_t book, type, input_bits, function;
  int64_t first_packed = 0;  // the row that `packed` begins with
  int32_t byte_offset = LAYOUTS[INT8].offset;  // of codes of a byte each, whatever INT8 has

  const uint8_t* row_codes(int64_t row) const { return packed + (row - first_packed) * row_bytes; }
  int64_t groups() const { return num_scales > rows ? num_scales / rows : 1; }
  int64_t group_size() const { return columns / groups(); }
  const float* row_scales(int64_t row) const {  // groups() of them
    return num_scales >= rows ? scale + row * groups() : scale + row / (rows / num_scales);
  }
  const int8_t* offsets_of(const float* scales) const { return offset ? offset + (scales - scale) : nullptr; }
};

// The tokens as integers: q (signed 8 bits) in the kernel's own order of columns, with value scale * (q - zero).
// `sums` are of q over each group, `ones` is a token of 1 in every column that exists.
struct Tokens {
  int8_t* q;
  int8_t* ones;
  float* scale;
  int32_t* sums;
  int32_t zero;
  int64_t stride;       // of a token in q
  int64_t chunk_bytes;  // packed bytes whose codes stand together, those of the first place of each byte first
};

// Tokens that stay as they are: x in FP32 with zeros up to the stride, and its sums over each group.
struct Inputs {
  const float* x;
  const float* sums;
  int64_t stride;
};

// One query for each of `heads` against `length` keys and values of `key_heads`, for each of a batch: softmax attention.
struct Attention {
  const float* query;   // (batch, heads, width)
  const void* keys;     // (batch, key_heads, length, width), each head's rows beside each other; behind its scale if SCALED_INT8
  const void* values;
  float* y;             // (batch, heads, width)
  int64_t batch, heads, key_heads, length, width, key_batch_stride, key_head_stride, value_batch_stride, value_head_stride;
  float scale;
  int32_t type;  // of keys and values
};

// Many queries for each of `heads`, in FP32, softmax attention. Strides, in numbers, are of batch, head and row, whose
// `width` numbers lie beside each other; of the mask, of batch and query. y is (batch, queries, heads, width).
struct ManyQueries {
  const float* query;
  const float* keys;
  const float* values;
  const uint8_t* mask;  // 0 where a query may not look; or null
  float* y;
  int64_t batch, heads, key_heads, queries, length, width;
  const int64_t *query_strides, *key_strides, *value_strides, *mask_strides;
  float scale;
  int32_t causal;  // query i sees keys up to i
};

// y = function(gate) * up, or function(gate) where there is no up, for `rows` of `count` numbers. Of gate and up every
// `step`-th number is taken, and a row begins `row` numbers after the one before it; y has nothing between.
struct Activation {
  const float *gate, *up;
  float* y;
  int64_t rows, count, gate_row, gate_step, up_row, up_step;
  int32_t function;
};

// What one instruction set offers.
struct Kernels {
  void (*quantize)(const Linear&, const Tokens&, int64_t first, int64_t last);
  void (*linear)(const Linear&, const Tokens&, int64_t first_row, int64_t last_row);
  void (*linear_in_tiles)(const Linear&, const Tokens&, int64_t first_row, int64_t last_row);  // of many tokens; or null
  void (*attend)(const Attention&, int64_t first_head, int64_t last_head);  // of batch * key_heads
  void (*attend_all)(const ManyQueries&, int64_t first_head, int64_t last_head);  // of batch * key_heads; or null
  void (*activate)(const Activation&);
};

// What it offers for inputs that stay as they are.
struct FloatKernels {
  void (*widen)(const Linear&, float* x, float* sums, int64_t stride);  // what Inputs have
  void (*linear)(const Linear&, const Inputs&, int64_t first_row, int64_t last_row);
  void (*dense)(const Linear&, void* to, int64_t first_row, int64_t last_row);  // the weights of these rows
};

const Kernels& kernels_of(int32_t path);
const FloatKernels& floats_of(int32_t path);

extern const FloatKernels portable_floats, avx2_floats, avx512_floats;
extern const Kernels portable_kernels, avx2_kernels, avx512vnni_kernels, amx_kernels;

}  // namespace abridged
