// Numbers of FP32 and bf16. In a namespace without a name, as each instruction set has functions of its own.
#pragma once
#include <cstdint>
#include <cstring>

namespace abridged {
namespace {

inline float widen(uint16_t v) {
  const uint32_t bits = uint32_t(v) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline float widen(float v) { return v; }
inline float widen(int8_t v) { return float(v); }
inline void narrow(float f, float* p) { *p = f; }
inline void narrow(float f, uint16_t* p) {  // to the nearest bf16, ties to even
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  *p = f != f ? uint16_t(0x7fc0) : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Numbers that stand before those of a key or value: of 8 bits four, which are its scale in FP32.
template <typename T>
constexpr int64_t BEFORE = 0;
template <>
constexpr int64_t BEFORE<int8_t> = sizeof(float);

// What the numbers of a key or value are to be multiplied by.
template <typename T>
float scale_of(const T* row) {
  float scale = 1.0f;
  std::memcpy(&scale, row, size_t(BEFORE<T>));
  return scale;
}

}  // namespace
}  // namespace abridged
