// A packed matrix times some tokens, taken apart into what threads can share.
#pragma once
#include <vector>

#include "share.hpp"

namespace abridged {

// `l` with the rows [first, last) of codes of `book` that lie across bytes, widened into `memory`: a byte each, whose
// columns lie beside each other.
Linear widened(const Linear& l, int32_t book, int64_t row_bytes, int64_t first, int64_t last,
               std::vector<uint8_t>& memory);

// First the tokens are made ready, in memory that the caller lends: as integers, or where l.input_bits is 0 in FP32. Then
// come the rows, in any order and by any thread.
class Product {
 public:
  // l.book and l.row_bytes are the packed weight's own.
  Product(const Linear& l, int32_t path);

  // Whether it can be done: the zero point is one of the input's levels, so that sums fit 32 bits.
  bool possible() const;
  size_t bytes() const;                // of that memory
  void lend(uint8_t* memory);          // aligned as numbers are
  bool reads_alike(const Product& other) const;  // so that tokens made ready for the other serve this one, too
  void share_with(const Product& other) { tokens_ = other.tokens_, inputs_ = other.inputs_; }
  void make_ready(int64_t first, int64_t last) const;  // tokens; all of them where they stay in FP32
  void multiply(int64_t first, int64_t last) const;    // rows
  int64_t piece(int64_t threads) const;                // rows for a thread to take at a time: a few pieces for each
  bool rounds() const { return l_.input_bits != 0; }
  const Linear& linear() const { return l_; }

 private:
  Linear l_;
  Tokens tokens_{};
  Inputs inputs_{};
  int32_t book_;
  int64_t row_bytes_;
  const Kernels* kernels_;
  const FloatKernels* floats_;
  bool across_, tiles_;

  int64_t held() const;
};

}  // namespace abridged
