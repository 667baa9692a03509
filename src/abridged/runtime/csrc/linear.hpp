// Quantised tokens times packed weights, for the instruction set that this is compiled for.
//
// 64 packed bytes hold, place by place, codes of columns that lie per_byte apart: a shift and a mask of the whole
// vector take out one place. The tokens are put into that order once, and the weights are used as they lie on disk.
#pragma once
#include <cmath>
#include <cstring>
#include <limits>

#include "abridged_kernels.h"
#include "numbers.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace abridged {
namespace {

constexpr int CHUNK = 64;  // bytes

// Compilers leave loops of this size as they are, and then keep sums in memory instead of registers.
#if defined(__GNUC__) && defined(__AVX2__) && !defined(ABRIDGED_SANITIZE)
#define UNROLL _Pragma("GCC unroll 4")
#define UNROLL_8 _Pragma("GCC unroll 8")
#else
#define UNROLL
#define UNROLL_8
#endif

#if !defined(__AVX512VNNI__)  // which of up to 16 numbers each of 16 places takes
struct Lanes { int32_t from[16]; };
inline Lanes make_lanes(const int32_t* from) {
  Lanes l;
  std::memcpy(l.from, from, sizeof l.from);
  return l;
}
#endif

#if defined(__AVX512VNNI__)

using Bytes = __m512i;  // 64 of them
using Sums = __m512i;   // 16 sums of 4 products each
using Floats = __m512;  // 16

inline Bytes load(const void* p) { return _mm512_loadu_si512(p); }
inline Bytes load(const void* p, int64_t n) {
  return _mm512_maskz_loadu_epi8(n >= CHUNK ? ~0ull : (1ull << n) - 1, p);
}
inline Sums no_sums() { return _mm512_setzero_si512(); }
template <int BITS>
inline Bytes place(Bytes b, int p) {
  if (BITS == 8) return b;
  return _mm512_and_si512(_mm512_srli_epi16(b, BITS * p), _mm512_set1_epi8(char((1 << BITS) - 1)));
}
inline Bytes third(Bytes b) {  // every byte divided by 3
  const __m512i low = _mm512_set1_epi16(255), by = _mm512_set1_epi16(21846);
  const __m512i even = _mm512_mulhi_epu16(_mm512_and_si512(b, low), by);
  const __m512i odd = _mm512_mulhi_epu16(_mm512_srli_epi16(b, 8), by);
  return _mm512_or_si512(even, _mm512_slli_epi16(odd, 8));
}
inline Bytes minus_thrice(Bytes a, Bytes b) {
  return _mm512_sub_epi8(_mm512_sub_epi8(_mm512_sub_epi8(a, b), b), b);
}
template <bool WIDE>
inline Sums dot(Sums s, Bytes codes, Bytes q) { return _mm512_dpbusd_epi32(s, codes, q); }
inline Sums minus_product(Sums s, Sums t, int32_t by) {
  return _mm512_sub_epi32(s, _mm512_mullo_epi32(t, _mm512_set1_epi32(by)));
}
inline int32_t total(Sums s) { return _mm512_reduce_add_epi32(s); }
inline float total(Floats f) { return _mm512_reduce_add_ps(f); }
inline Floats no_floats() { return _mm512_setzero_ps(); }
inline Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
inline Floats load_floats(const uint16_t* p) {  // bf16
  const __m256i sixteen = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen), 16));
}
inline Floats load_floats(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store_floats(float* p, Floats f) { _mm512_storeu_ps(p, f); }
inline Floats same(float f) { return _mm512_set1_ps(f); }
inline Floats add_scaled(Floats f, Sums s, Floats scale) { return _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), scale, f); }
inline void store(void* p, Bytes b) { _mm512_storeu_si512(p, b); }
inline __mmask16 first_of_16(int64_t n) { return __mmask16(n >= 16 ? 0xffff : (1 << n) - 1); }
inline Floats load_floats(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first_of_16(n), p); }
inline Floats load_floats(const int8_t* p, int64_t n) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_of_16(n), p)));
}
inline Floats differences(const int32_t* p, int64_t n, int32_t less) {  // the first n of p, less a number
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_maskz_loadu_epi32(first_of_16(n), p), _mm512_set1_epi32(less)));
}
inline Floats add_product(Floats f, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, f); }
using Lanes = __m512i;  // which of up to 16 numbers each of 16 places takes
inline Lanes make_lanes(const int32_t* from) { return _mm512_loadu_si512(from); }
inline Floats spread(const float* p, int64_t n, Lanes lanes) {  // of n numbers that may be read
  return _mm512_permutexvar_ps(lanes, load_floats(p, n));
}

#elif defined(__AVX2__)

struct Bytes { __m256i v[2]; };
struct Sums { __m256i v[2]; };
struct Floats { __m256 v[2]; };

inline Bytes load(const void* p) {
  const __m256i* v = static_cast<const __m256i*>(p);
  return {{_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)}};
}
inline Sums no_sums() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
template <int BITS>
inline Bytes place(Bytes b, int p) {
  if (BITS == 8) return b;
  const __m256i mask = _mm256_set1_epi8(char((1 << BITS) - 1));
  for (__m256i& v : b.v) v = _mm256_and_si256(_mm256_srli_epi16(v, BITS * p), mask);
  return b;
}
inline Bytes third(Bytes b) {
  const __m256i low = _mm256_set1_epi16(255), by = _mm256_set1_epi16(21846);
  for (__m256i& v : b.v) {
    const __m256i even = _mm256_mulhi_epu16(_mm256_and_si256(v, low), by);
    const __m256i odd = _mm256_mulhi_epu16(_mm256_srli_epi16(v, 8), by);
    v = _mm256_or_si256(even, _mm256_slli_epi16(odd, 8));
  }
  return b;
}
inline Bytes minus_thrice(Bytes a, Bytes b) {
  for (int h = 0; h < 2; ++h)
    a.v[h] = _mm256_sub_epi8(_mm256_sub_epi8(_mm256_sub_epi8(a.v[h], b.v[h]), b.v[h]), b.v[h]);
  return a;
}
template <bool WIDE>  // codes above 127: two products of theirs do not fit 16 bits
inline Sums dot(Sums s, Bytes codes, Bytes q) {
  for (int h = 0; h < 2; ++h) {
    if (!WIDE) {
      const __m256i pairs = _mm256_maddubs_epi16(codes.v[h], q.v[h]);
      s.v[h] = _mm256_add_epi32(s.v[h], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    } else {
      // even and odd bytes apart, so that each 32-bit lane still sums its own four products
      const __m256i low = _mm256_set1_epi16(255);
      const __m256i c0 = _mm256_and_si256(codes.v[h], low), c1 = _mm256_srli_epi16(codes.v[h], 8);
      const __m256i q0 = _mm256_srai_epi16(_mm256_slli_epi16(q.v[h], 8), 8), q1 = _mm256_srai_epi16(q.v[h], 8);
      const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(c0, q0), _mm256_madd_epi16(c1, q1));
      s.v[h] = _mm256_add_epi32(s.v[h], sum);
    }
  }
  return s;
}
inline Sums minus_product(Sums s, Sums t, int32_t by) {
  for (int h = 0; h < 2; ++h)
    s.v[h] = _mm256_sub_epi32(s.v[h], _mm256_mullo_epi32(t.v[h], _mm256_set1_epi32(by)));
  return s;
}
inline int32_t total(Sums s) {
  const __m256i v = _mm256_add_epi32(s.v[0], s.v[1]);
  __m128i w = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  w = _mm_add_epi32(w, _mm_shuffle_epi32(w, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(w, _mm_shuffle_epi32(w, 0xb1)));
}
inline float total(Floats f) {
  const __m256 v = _mm256_add_ps(f.v[0], f.v[1]);
  __m128 w = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  w = _mm_add_ps(w, _mm_movehl_ps(w, w));
  return _mm_cvtss_f32(_mm_add_ss(w, _mm_shuffle_ps(w, w, 1)));
}
inline Floats no_floats() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
inline Floats load_floats(const float* p) { return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }
inline Floats load_floats(const uint16_t* p) {  // bf16
  Floats f;
  for (int h = 0; h < 2; ++h) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + h);
    f.v[h] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
  }
  return f;
}
inline Floats load_floats(const int8_t* p) {
  Floats f;
  for (int h = 0; h < 2; ++h)
    f.v[h] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * h))));
  return f;
}
inline void store_floats(float* p, Floats f) { _mm256_storeu_ps(p, f.v[0]), _mm256_storeu_ps(p + 8, f.v[1]); }
inline Floats same(float f) { return {{_mm256_set1_ps(f), _mm256_set1_ps(f)}}; }
inline Floats add_scaled(Floats f, Sums s, Floats scale) {
  for (int h = 0; h < 2; ++h) f.v[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s.v[h]), scale.v[h], f.v[h]);
  return f;
}
inline void store(void* p, Bytes b) {
  __m256i* v = static_cast<__m256i*>(p);
  _mm256_storeu_si256(v, b.v[0]);
  _mm256_storeu_si256(v + 1, b.v[1]);
}
inline __m256i first_of_8(int64_t n) {
  const __m256i count = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n < 0 ? 0 : n > 8 ? 8 : n)), count);
}
inline Floats load_floats(const float* p, int64_t n) {
  return {{_mm256_maskload_ps(p, first_of_8(n)), _mm256_maskload_ps(n > 8 ? p + 8 : p, first_of_8(n - 8))}};
}
inline Floats differences(const int32_t* p, int64_t n, int32_t less) {
  Floats f;
  for (int h = 0; h < 2; ++h) {
    const __m256i v = _mm256_maskload_epi32(n > 8 * h ? p + 8 * h : p, first_of_8(n - 8 * h));
    f.v[h] = _mm256_cvtepi32_ps(_mm256_sub_epi32(v, _mm256_set1_epi32(less)));
  }
  return f;
}
inline Floats add_product(Floats f, Floats a, Floats b) {
  for (int h = 0; h < 2; ++h) f.v[h] = _mm256_fmadd_ps(a.v[h], b.v[h], f.v[h]);
  return f;
}
inline Floats spread(const float* p, int64_t n, const Lanes& l) {
  Floats f;
  for (int h = 0; h < 2; ++h) {
    const int64_t first = l.from[8 * h], left = n - first;
    const __m256i mask = first_of_8(left);
    const __m256i from = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(l.from + 8 * h));
    const __m256 values = _mm256_maskload_ps(left > 0 ? p + first : p, mask);
    f.v[h] = _mm256_permutevar8x32_ps(values, _mm256_sub_epi32(from, _mm256_set1_epi32(int(first))));
  }
  return f;
}

#else  // loops that any compiler can vectorise

struct Bytes { uint8_t v[CHUNK]; };
struct Sums { int32_t v[16]; };
struct Floats { float v[16]; };

inline Bytes load(const void* p) {
  Bytes b;
  std::memcpy(b.v, p, CHUNK);
  return b;
}
inline Sums no_sums() { return {}; }
template <int BITS>
inline Bytes place(Bytes b, int p) {
  for (uint8_t& v : b.v) v = (v >> (BITS == 8 ? 0 : BITS * p)) & ((1 << BITS) - 1);
  return b;
}
inline Bytes third(Bytes b) {
  for (uint8_t& v : b.v) v = uint8_t(v * 21846u >> 16);
  return b;
}
inline Bytes minus_thrice(Bytes a, Bytes b) {
  for (int i = 0; i < CHUNK; ++i) a.v[i] = uint8_t(a.v[i] - 3 * b.v[i]);
  return a;
}
template <bool WIDE>
inline Sums dot(Sums s, const Bytes& codes, const Bytes& q) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 4; ++j) s.v[i] += int32_t(codes.v[4 * i + j]) * int8_t(q.v[4 * i + j]);
  return s;
}
inline Sums minus_product(Sums s, const Sums& t, int32_t by) {
  for (int i = 0; i < 16; ++i) s.v[i] = int32_t(uint32_t(s.v[i]) - uint32_t(t.v[i]) * uint32_t(by));
  return s;
}
inline int32_t total(const Sums& s) {
  int32_t t = 0;
  for (int32_t v : s.v) t += v;
  return t;
}
inline float total(const Floats& f) {
  float t = 0;
  for (float v : f.v) t += v;
  return t;
}
inline Floats no_floats() { return {}; }
inline Floats load_floats(const float* p) {
  Floats f;
  std::memcpy(f.v, p, sizeof f.v);
  return f;
}
inline void store_floats(float* p, const Floats& f) { std::memcpy(p, f.v, sizeof f.v); }
inline Floats same(float value) {
  Floats f;
  for (float& v : f.v) v = value;
  return f;
}
inline Floats add_scaled(Floats f, const Sums& s, const Floats& scale) {
  for (int i = 0; i < 16; ++i) f.v[i] += float(s.v[i]) * scale.v[i];
  return f;
}
inline void store(void* p, const Bytes& b) { std::memcpy(p, b.v, CHUNK); }
inline Floats load_floats(const float* p, int64_t n) {
  Floats f;
  for (int i = 0; i < 16; ++i) f.v[i] = i < n ? p[i] : 0.0f;
  return f;
}
inline Floats differences(const int32_t* p, int64_t n, int32_t less) {
  Floats f;
  for (int i = 0; i < 16; ++i) f.v[i] = float((i < n ? p[i] : 0) - less);
  return f;
}
inline Floats add_product(Floats f, const Floats& a, const Floats& b) {
  for (int i = 0; i < 16; ++i) f.v[i] += a.v[i] * b.v[i];
  return f;
}
inline Floats spread(const float* p, int64_t n, const Lanes& l) {
  Floats f;
  for (int i = 0; i < 16; ++i) f.v[i] = l.from[i] < n ? p[l.from[i]] : 0.0f;
  return f;
}

#endif

#if !defined(__AVX512BW__)
inline Floats load_floats(const int8_t* p, int64_t n) {
  float values[16] = {};
  for (int i = 0; i < 16 && i < n; ++i) values[i] = float(p[i]);
  return load_floats(values);
}
#endif

// What the codes of one chunk add to sums: begun with them, dotted with each place, and ended. ROWS_AT_A_TIME: as many as
// registers hold meanwhile.
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
constexpr int ROWS_AT_A_TIME = 1;
// a += b, of 16 bits, in this place: GCC else adds in another order, copies sums about, and runs out of registers.
inline void add_pairs(__m256i& a, __m256i b) { __asm__("vpaddw %1, %0, %0" : "+x"(a) : "x"(b)); }
// In 16 bits, which hold the products of all places of codes below 16, and are widened once for all of them.
template <bool WIDE>
inline Sums begin_chunk(Sums s) { return WIDE ? s : no_sums(); }
template <bool WIDE>
inline Sums dot_in_chunk(Sums s, Bytes codes, Bytes q) {
  if (WIDE) return dot<true>(s, codes, q);
  for (int h = 0; h < 2; ++h) add_pairs(s.v[h], _mm256_maddubs_epi16(codes.v[h], q.v[h]));
  return s;
}
template <bool WIDE>
inline Sums end_chunk(Sums s, Sums of_chunk) {
  if (WIDE) return of_chunk;
  for (int h = 0; h < 2; ++h)
    s.v[h] = _mm256_add_epi32(s.v[h], _mm256_madd_epi16(of_chunk.v[h], _mm256_set1_epi16(1)));
  return s;
}
#else
constexpr int ROWS_AT_A_TIME = 4;
template <bool WIDE>
inline Sums begin_chunk(const Sums& s) { return s; }
template <bool WIDE>
inline Sums dot_in_chunk(const Sums& s, const Bytes& codes, const Bytes& q) { return dot<WIDE>(s, codes, q); }
template <bool WIDE>
inline Sums end_chunk(const Sums&, const Sums& of_chunk) { return of_chunk; }
#endif

#if !defined(__AVX512VNNI__)
inline Bytes load(const void* p, int64_t n) {  // of n bytes that may be read
  if (n >= CHUNK) return load(p);
  uint8_t padded[CHUNK] = {};
  std::memcpy(padded, p, size_t(n));
  return load(padded);
}
#endif

inline Bytes all_ones() {
  uint8_t ones[CHUNK];
  std::memset(ones, 1, CHUNK);
  return load(ones);
}

// The codes at place p of a chunk's bytes. Places are asked for in order: those of base 3 are divided off.
template <int BOOK>
inline Bytes next_codes(Bytes& chunk, int p) {
  if constexpr (BOOK == TERNARY_BASE3) {
    const Bytes above = third(chunk), codes = minus_thrice(chunk, above);
    chunk = above;
    return codes;
  } else {
    return place<LAYOUTS[BOOK].bits>(chunk, p);
  }
}

template <int BOOK>
constexpr bool is_wide = BOOK == INT8;

template <typename T>
inline void write(const Linear& l, int64_t token, int64_t row, float value) {
  narrow(value + (l.bias ? l.bias[row] : 0.0f), static_cast<T*>(l.y) + token * l.rows + row);
}

// ---- tokens to integers

// `Word` has a code of every place: shifts and narrowing are what compilers make vector instructions of.
template <typename Word>
void into_places(const int8_t* from, int8_t* to, int64_t chunk_bytes) {
  for (size_t p = 0; p < sizeof(Word); ++p)
    for (int64_t i = 0; i < chunk_bytes; ++i) {
      Word word;
      std::memcpy(&word, from + int64_t(sizeof word) * i, sizeof word);
      to[int64_t(p) * chunk_bytes + i] = int8_t(word >> 8 * p);
    }
}

void into_5_places(const int8_t* from, int8_t* to, int64_t chunk_bytes) {
  for (int64_t i = 0; i < chunk_bytes; ++i)
    for (int p = 0; p < 5; ++p) to[p * chunk_bytes + i] = from[5 * i + p];
}

void reorder(const int8_t* from, const Tokens& t, int places, int8_t* to) {
  for (int64_t done = 0; done < t.stride; done += places * t.chunk_bytes) {
    switch (places) {
      case 1: std::memcpy(to + done, from + done, size_t(t.chunk_bytes)); break;
      case 2: into_places<uint16_t>(from + done, to + done, t.chunk_bytes); break;
      case 4: into_places<uint32_t>(from + done, to + done, t.chunk_bytes); break;
      case 5: into_5_places(from + done, to + done, t.chunk_bytes); break;
      default: into_places<uint64_t>(from + done, to + done, t.chunk_bytes);
    }
  }
}

template <typename T>
inline float magnitude(T v) { return std::fabs(widen(v)); }

#if defined(__AVX512VNNI__)
inline Floats load_16(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline Floats load_16(const uint16_t* p, __mmask16 mask) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
}

template <typename T>
float largest_magnitude(const T* x, int64_t n) {
  Floats largest[4] = {no_floats(), no_floats(), no_floats(), no_floats()};
  for (int64_t i = 0; i < n; i += 16) {
    Floats& f = largest[i / 16 % 4];
    f = _mm512_max_ps(_mm512_abs_ps(load_16(x + i, first_of_16(n - i))), f);  // of a NaN and f, f
  }
  return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3])));
}

// x / scale rounded to integers. A product with 1 / scale rounds to the same ones, but where it comes near the middle
// of two: there the division, which takes longer, decides. False where one was not a number.
template <typename T>
bool round_all(const T* x, int64_t n, float scale, float zero, float low, float high, float shift, int8_t* levels) {
  const Floats by = same(scale), inverse = same(1.0f / scale), middle = same(0.4995f);
  __mmask16 bad = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask = first_of_16(n - i);
    const Floats from = load_16(x + i, mask), product = _mm512_mul_ps(from, inverse);
    Floats v = _mm512_roundscale_ps(product, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Floats distance = _mm512_abs_ps(_mm512_sub_ps(product, v));
    if (__builtin_expect(_mm512_cmp_ps_mask(distance, middle, _CMP_NLT_UQ) != 0, 0))
      v = _mm512_roundscale_ps(_mm512_div_ps(from, by), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    v = _mm512_add_ps(v, same(zero));
    bad |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    v = _mm512_min_ps(_mm512_max_ps(v, same(low)), same(high));
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_sub_ps(v, same(shift))));
    _mm_mask_storeu_epi8(levels + i, mask, bytes);
  }
  return bad == 0;
}
#else
template <typename T>
float largest_magnitude(const T* x, int64_t n) {
  float lanes[16] = {};  // since compilers may not reorder one maximum
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) lanes[j] = magnitude(x[i + j]) > lanes[j] ? magnitude(x[i + j]) : lanes[j];
  for (; i < n; ++i) lanes[0] = magnitude(x[i]) > lanes[0] ? magnitude(x[i]) : lanes[0];
  float largest = 0;
  for (float lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

// x / scale rounded to integers; false where one was not a number.
template <typename T>
bool round_all(const T* x, int64_t n, float scale, float zero, float low, float high, float shift, int8_t* levels) {
  int bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    float v = std::nearbyint(widen(x[i]) / scale) + zero;
    bad |= v != v;
    v = v > low ? v : low;
    v = v < high ? v : high;
    levels[i] = int8_t(int(v - shift));
  }
  return bad == 0;
}
#endif

// e to the x, to two units in the last place, and what is not a number stays it; a loop over it becomes vector
// instructions.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float n = std::nearbyint(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float shifted = n + 12582912.0f;  // 1.5 * 2^23: its last bits are n, and a conversion of NaN would be undefined
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

// What a token passes before it is rounded.
template <typename T>
void apply(int32_t function, const T* x, int64_t n, float* y) {
  if (function == GELU_TANH)  // x / 2 (1 + tanh(u)) is x / (1 + exp(-2 u))
    for (int64_t i = 0; i < n; ++i) {
      const float v = widen(x[i]);
      y[i] = v / (1.0f + exponential(-1.59576912f * (v + 0.044715f * v * v * v)));
    }
  if (function == GELU)  // x / 2 erfc(-x / sqrt(2)); erfc as in Abramowitz and Stegun, 7.1.26: to 1.5e-7
    for (int64_t i = 0; i < n; ++i) {
      const float v = widen(x[i]), z = std::fabs(v) * 0.707106781f;
      const float t = 1.0f / (1.0f + 0.3275911f * z);
      float p = 1.061405429f;
      p = p * t - 1.453152027f;
      p = p * t + 1.421413741f;
      p = p * t - 0.284496736f;
      p = p * t + 0.254829592f;
      const float tail = p * t * exponential(-z * z);
      y[i] = 0.5f * v * (v < 0 ? tail : 2.0f - tail);
    }
  if (function == SILU || function == GELU_SIGMOID) {
    const float by = function == SILU ? -1.0f : -1.702f;
    for (int64_t i = 0; i < n; ++i) y[i] = widen(x[i]) / (1.0f + exponential(by * widen(x[i])));
  }
  if (function == RELU || function == RELU2)
    for (int64_t i = 0; i < n; ++i) {
      const float v = widen(x[i]), kept = v < 0 ? 0.0f : v;  // what is not a number stays it
      y[i] = function == RELU ? kept : kept * kept;
    }
  if (function == IDENTITY)
    for (int64_t i = 0; i < n; ++i) y[i] = widen(x[i]);
}

// `count` numbers of which every `step`-th is taken, beside each other: where they lie, or copied to `room`.
inline const float* beside(const float* from, int64_t count, int64_t step, float* room) {
  if (step == 1) return from;
  for (int64_t i = 0; i < count; ++i) room[i] = from[i * step];
  return room;
}

[[maybe_unused]] void activate(const Activation& a) {
  for (int64_t row = 0; row < a.rows; ++row) {
    float* y = a.y + row * a.count;
    apply(a.function, beside(a.gate + row * a.gate_row, a.count, a.gate_step, y), a.count, y);
    if (!a.up) continue;
    const float* up = a.up + row * a.up_row;
    for (int64_t i = 0; i < a.count; ++i) y[i] *= up[i * a.up_step];
  }
}

template <typename T>
void quantize_token(const Linear& l, const Tokens& t, const T* x, int64_t token, int8_t* levels) {
  const bool symmetric = l.input_zero_point == nullptr;
  const int bits = l.input_bits;
  const float high = symmetric ? float((1 << (bits - 1)) - 1) : float((1 << bits) - 1), low = symmetric ? -high : 0;
  const float zero = symmetric ? 0.0f : float(*l.input_zero_point), shift = !symmetric && bits == 8 ? 128.0f : 0.0f;
  const int64_t n = l.columns;
  float scale;
  if (l.input_scale) {
    scale = *l.input_scale;
  } else {
    scale = largest_magnitude(x, n) / high;
    scale = scale < 1e-10f ? 1e-10f : scale;
  }
  const bool good = round_all(x, n, scale, zero, low, high, shift, levels);
  t.scale[token] = good ? scale : std::numeric_limits<float>::quiet_NaN();
  const int64_t groups = l.groups(), size = l.group_size();
  const Bytes ones = all_ones();
  for (int64_t g = 0; g < groups; ++g) {
    Sums sums = no_sums();
    for (int64_t i = g * size; i < (g + 1) * size; i += CHUNK)
      sums = dot<false>(sums, ones, load(levels + i, (g + 1) * size - i));
    t.sums[token * groups + g] = total(sums);
  }
}

template <typename T>
void quantize_tokens(const Linear& l, const Tokens& t, int64_t first, int64_t last) {
  const int places = LAYOUTS[l.book].per_byte;
  int8_t* levels = new int8_t[size_t(t.stride)]();
  float* values = l.function == IDENTITY ? nullptr : new float[size_t(l.columns)];
  for (int64_t token = first; token < last; ++token) {
    const T* x = static_cast<const T*>(l.x) + token * l.columns;
    if (values) {
      apply(l.function, x, l.columns, values);
      quantize_token(l, t, values, token, levels);
    } else {
      quantize_token(l, t, x, token, levels);
    }
    reorder(levels, t, places, t.q + token * t.stride);
  }
  if (first == 0 && t.ones) {
    std::memset(levels, 1, size_t(l.columns));
    reorder(levels, t, places, t.ones);
  }
  delete[] values;
  delete[] levels;
}

[[maybe_unused]] void quantize(const Linear& l, const Tokens& t, int64_t first, int64_t last) {
  l.type == FLOAT32 ? quantize_tokens<float>(l, t, first, last) : quantize_tokens<uint16_t>(l, t, first, last);
}

// ---- a block of rows times a block of tokens

// The level of code 0.
template <int BOOK>
inline int32_t lowest(const Linear& l) { return BOOK == INT8 ? l.byte_offset : LAYOUTS[BOOK].offset; }

// What `codes * q`, summed, is in levels and with the zero point: exact modulo 2^32, and the result fits.
template <int BOOK>
inline int32_t in_levels(const Linear& l, uint32_t products, uint32_t q_sum, uint32_t code_sum, uint32_t zero) {
  constexpr uint32_t a = uint32_t(LAYOUTS[BOOK].multiplier);
  const uint32_t b = uint32_t(lowest<BOOK>(l)), columns = uint32_t(l.columns);
  return int32_t(a * products + b * q_sum - zero * (a * code_sum + b * columns));
}

// Adds the products of one chunk of some rows to their sums, and with a token of `ones` the codes to theirs. Codes that
// are read behind a row's end meet columns of 0.
template <int BOOK, int ROWS, int TOKENS, bool CODES>
inline void add_chunk_of(const Tokens& t, const uint8_t* packed, int64_t row_bytes, const uint8_t* end, const int8_t* q,
                         const int8_t* ones, Sums (*sums)[TOKENS], Sums* code_sums) {
  constexpr bool wide = is_wide<BOOK>;
  Bytes chunk[ROWS];
  Sums parts[ROWS][TOKENS], code_parts[ROWS];
  UNROLL for (int r = 0; r < ROWS; ++r) {
    chunk[r] = load(packed + r * row_bytes, end - packed - r * row_bytes);
    if (CODES) code_parts[r] = begin_chunk<wide>(code_sums[r]);
    UNROLL for (int k = 0; k < TOKENS; ++k) parts[r][k] = begin_chunk<wide>(sums[r][k]);
  }
  for (int p = 0; p < LAYOUTS[BOOK].per_byte; ++p) {
    UNROLL for (int r = 0; r < ROWS; ++r) {
      const Bytes codes = next_codes<BOOK>(chunk[r], p);
      UNROLL for (int k = 0; k < TOKENS; ++k)
        parts[r][k] = dot_in_chunk<wide>(parts[r][k], codes, load(q + k * t.stride + p * CHUNK));
      if (CODES) code_parts[r] = dot_in_chunk<wide>(code_parts[r], codes, load(ones + p * CHUNK));
    }
  }
  UNROLL for (int r = 0; r < ROWS; ++r) {
    if (CODES) code_sums[r] = end_chunk<wide>(code_sums[r], code_parts[r]);
    UNROLL for (int k = 0; k < TOKENS; ++k) sums[r][k] = end_chunk<wide>(sums[r][k], parts[r][k]);
  }
}

template <int BOOK, int ROWS, int TOKENS>
inline void add_chunk(const Tokens& t, const uint8_t* packed, int64_t row_bytes, const uint8_t* end, const int8_t* q,
                      const int8_t* ones, Sums (*sums)[TOKENS], Sums* code_sums) {
  ones ? add_chunk_of<BOOK, ROWS, TOKENS, true>(t, packed, row_bytes, end, q, ones, sums, code_sums)
       : add_chunk_of<BOOK, ROWS, TOKENS, false>(t, packed, row_bytes, end, q, ones, sums, code_sums);
}

template <int ROWS>
constexpr int at_a_time = ROWS < ROWS_AT_A_TIME ? ROWS : ROWS_AT_A_TIME;

// `end` is that of the codes that may be read.
template <int BOOK, typename T, int ROWS, int TOKENS>
void block(const Linear& l, const Tokens& t, const uint8_t* end, int64_t row, int64_t token) {
  constexpr int rows = at_a_time<ROWS>, step = CHUNK * LAYOUTS[BOOK].per_byte;
  const bool shifted = t.zero != 0;
  const uint8_t* packed = l.row_codes(row);
  Sums sums[ROWS][TOKENS], code_sums[ROWS];
  for (int first = 0; first < ROWS; first += rows) {
    Sums some[rows][TOKENS], some_codes[rows];
    UNROLL for (int r = 0; r < rows; ++r) {
      some_codes[r] = no_sums();
      UNROLL for (int k = 0; k < TOKENS; ++k) some[r][k] = no_sums();
    }
    const int8_t *q = t.q + token * t.stride, *ones = shifted ? t.ones : nullptr;
    for (int64_t byte = 0; byte < l.row_bytes; byte += CHUNK, q += step, ones += shifted ? step : 0)
      add_chunk<BOOK, rows, TOKENS>(t, packed + first * l.row_bytes + byte, l.row_bytes, end, q, ones, some, some_codes);
    UNROLL for (int r = 0; r < rows; ++r) {
      code_sums[first + r] = some_codes[r];
      UNROLL for (int k = 0; k < TOKENS; ++k) sums[first + r][k] = some[r][k];
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    const int32_t code_sum = shifted ? total(code_sums[r]) : 0;
    const float* scales = l.row_scales(row + r);
    const float scale = *scales, offset = l.offset ? float(*l.offsets_of(scales)) : 0.0f;
    for (int k = 0; k < TOKENS; ++k) {
      const int32_t sum = in_levels<BOOK>(l, uint32_t(total(sums[r][k])), uint32_t(t.sums[token + k]),
                                          uint32_t(code_sum), uint32_t(t.zero));
      const float offsets = l.offset ? offset * float(t.sums[token + k] - t.zero * int32_t(l.columns)) : 0.0f;
      write<T>(l, token + k, row + r, (float(sum) + offsets) * (scale * t.scale[token + k]));
    }
  }
}

// The scales of the 16 sums of each chunk of a row that has several: bytes that stand beside each other in fours belong
// to one group. A group has some chunks (WHOLE), or a chunk some groups (PARTS), or neither divides the other.
struct Grouping {
  enum { WHOLE, PARTS, UNEVEN } kind;
  int64_t groups, size, group_bytes, per_chunk;
  Lanes lanes;

  explicit Grouping(const Linear& l) : groups(l.groups()), size(l.group_size()) {
    group_bytes = size / LAYOUTS[l.book].per_byte;
    if (groups == 1) return;
    kind = group_bytes % CHUNK == 0 ? WHOLE : CHUNK % group_bytes == 0 ? PARTS : UNEVEN;
    per_chunk = kind == PARTS ? CHUNK / group_bytes : 0;
    int32_t from[16];
    for (int i = 0; i < 16; ++i) from[i] = kind == PARTS ? int32_t(4 * i / group_bytes) : 0;
    lanes = make_lanes(from);
  }
  Floats uneven(const float* scales, int64_t byte) const {
    float values[16];
    for (int i = 0; i < 16; ++i) {
      const int64_t group = (byte + 4 * i) / group_bytes;
      values[i] = scales[group < groups ? group : groups - 1];
    }
    return load_floats(values);
  }
};

// `block` for rows with several scales.
template <int BOOK, typename T, int ROWS, int TOKENS, int KIND>
void grouped_block(const Linear& l, const Tokens& t, const Grouping& grouping, const uint8_t* end, int64_t row,
                   int64_t token) {
  constexpr int rows = at_a_time<ROWS>, step = CHUNK * LAYOUTS[BOOK].per_byte;
  const int64_t groups = grouping.groups, group_bytes = grouping.group_bytes;
  const bool shifted = t.zero != 0;
  const uint8_t* packed = l.row_codes(row);
  const float* row_scales = l.scale + row * groups;
  Floats values[ROWS][TOKENS];
  for (int first = 0; first < ROWS; first += rows) {
    Floats some[rows][TOKENS];
    Sums sums[rows][TOKENS], code_sums[rows];
    UNROLL for (int r = 0; r < rows; ++r) {
      code_sums[r] = no_sums();
      UNROLL for (int k = 0; k < TOKENS; ++k) some[r][k] = no_floats(), sums[r][k] = no_sums();
    }
    const int8_t *q = t.q + token * t.stride, *ones = shifted ? t.ones : nullptr;
    int64_t group = 0, group_end = group_bytes;
    for (int64_t byte = 0; byte < l.row_bytes; byte += CHUNK, q += step, ones += shifted ? step : 0) {
      add_chunk<BOOK, rows, TOKENS>(t, packed + first * l.row_bytes + byte, l.row_bytes, end, q, ones, sums, code_sums);
      if (KIND == Grouping::WHOLE && byte + CHUNK < group_end) continue;
      UNROLL for (int r = 0; r < rows; ++r) {
        const float* from = row_scales + (first + r) * groups;
        const Floats scales = KIND == Grouping::WHOLE   ? same(from[group])
                              : KIND == Grouping::PARTS ? spread(from + group, groups - group, grouping.lanes)
                                                        : grouping.uneven(from, byte);
        UNROLL for (int k = 0; k < TOKENS; ++k) {
          // the zero point while numbers are whole: its part is large, and cancels
          const Sums levels = shifted ? minus_product(sums[r][k], code_sums[r], t.zero) : sums[r][k];
          some[r][k] = add_scaled(some[r][k], levels, scales);
          sums[r][k] = no_sums();
        }
        code_sums[r] = no_sums();
      }
      group += KIND == Grouping::WHOLE ? 1 : grouping.per_chunk;
      group_end += group_bytes;
    }
    UNROLL for (int r = 0; r < rows; ++r)
      UNROLL for (int k = 0; k < TOKENS; ++k) values[first + r][k] = some[r][k];
  }
  // A level is a * code + b + offset: what b and offsets add is the scales times the tokens' sums.
  constexpr float a = float(LAYOUTS[BOOK].multiplier);
  const float b = float(lowest<BOOK>(l));
  for (int64_t g = 0; g < groups; g += 16) {
    Floats scales[ROWS], added[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      scales[r] = load_floats(row_scales + r * groups + g, groups - g);
      if (l.offset) added[r] = load_floats(l.offsets_of(row_scales) + r * groups + g, groups - g);
    }
    for (int k = 0; k < TOKENS; ++k) {
      const Floats sums =
          differences(t.sums + (token + k) * groups + g, groups - g, int32_t(t.zero * grouping.size));
      const Floats offsets = add_product(no_floats(), sums, same(b / a));
      for (int r = 0; r < ROWS; ++r)  // only codes of a = 1 have offsets
        values[r][k] = add_product(values[r][k], l.offset ? add_product(offsets, sums, added[r]) : offsets, scales[r]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int k = 0; k < TOKENS; ++k)
      write<T>(l, token + k, row + r, a * total(values[r][k]) * t.scale[token + k]);
}

template <int BOOK, typename T, int ROWS, int TOKENS, int KIND>
void grouped_rows_of(const Linear& l, const Tokens& t, const Grouping& grouping, int64_t first, int64_t last,
                     int64_t token) {
  const uint8_t* end = l.row_codes(last);
  int64_t row = first;
  for (; row + ROWS <= last; row += ROWS) grouped_block<BOOK, T, ROWS, TOKENS, KIND>(l, t, grouping, end, row, token);
  for (; row < last; ++row) grouped_block<BOOK, T, 1, TOKENS, KIND>(l, t, grouping, end, row, token);
}

template <int BOOK, typename T, int ROWS, int TOKENS>
void rows_of(const Linear& l, const Tokens& t, const Grouping& grouping, int64_t first, int64_t last, int64_t token) {
  int64_t row = first;
  if (grouping.groups > 1) {
    switch (grouping.kind) {
      case Grouping::WHOLE: return grouped_rows_of<BOOK, T, ROWS, TOKENS, Grouping::WHOLE>(l, t, grouping, first, last, token);
      case Grouping::PARTS: return grouped_rows_of<BOOK, T, ROWS, TOKENS, Grouping::PARTS>(l, t, grouping, first, last, token);
      default: return grouped_rows_of<BOOK, T, ROWS, TOKENS, Grouping::UNEVEN>(l, t, grouping, first, last, token);
    }
  }
  const uint8_t* end = l.row_codes(last);
  for (; row + ROWS <= last; row += ROWS) block<BOOK, T, ROWS, TOKENS>(l, t, end, row, token);
  for (; row < last; ++row) block<BOOK, T, 1, TOKENS>(l, t, end, row, token);
}

template <int BOOK, typename T>
void linear_of(const Linear& l, const Tokens& t, int64_t first, int64_t last) {
  const Grouping grouping(l);
  // A few rows stay in the first cache while all tokens pass by.
  const int64_t together = l.tokens > 8 ? 16 : last - first;
  for (int64_t row = first; row < last; row += together) {
    const int64_t end = row + together < last ? row + together : last;
    int64_t token = 0;
    for (; token + 4 <= l.tokens; token += 4) rows_of<BOOK, T, 4, 4>(l, t, grouping, row, end, token);
    for (; token + 2 <= l.tokens; token += 2) rows_of<BOOK, T, 4, 2>(l, t, grouping, row, end, token);
    for (; token < l.tokens; ++token) rows_of<BOOK, T, 4, 1>(l, t, grouping, row, end, token);
  }
}

template <int BOOK>
void linear_typed(const Linear& l, const Tokens& t, int64_t first, int64_t last) {
  l.type == FLOAT32 ? linear_of<BOOK, float>(l, t, first, last) : linear_of<BOOK, uint16_t>(l, t, first, last);
}

[[maybe_unused]] void linear(const Linear& l, const Tokens& t, int64_t first, int64_t last) {
  switch (l.book) {
    case BINARY: return linear_typed<BINARY>(l, t, first, last);
    case TERNARY: return linear_typed<TERNARY>(l, t, first, last);
    case TERNARY_BASE3: return linear_typed<TERNARY_BASE3>(l, t, first, last);
    case QUATERNARY: return linear_typed<QUATERNARY>(l, t, first, last);
    case INT4: return linear_typed<INT4>(l, t, first, last);
    default: return linear_typed<INT8>(l, t, first, last);
  }
}

}  // namespace
}  // namespace abridged
