// Packed matrices times tokens: how tokens lie for each path, and codes that lie across bytes.
#include "product.hpp"

#include <cstring>

namespace abridged {
namespace {

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

}  // namespace

Linear widened(const Linear& l, int32_t book, int64_t row_bytes, int64_t first, int64_t last,
               std::vector<uint8_t>& memory) {
  memory.resize(size_t((last - first) * l.columns));
  for (int64_t row = first; row < last; ++row)
    widen_row(book, l.packed + row * row_bytes, row_bytes, l.columns, memory.data() + (row - first) * l.columns);
  Linear wide = l;
  wide.packed = memory.data(), wide.first_packed = first, wide.byte_offset = LAYOUTS[book].offset;
  return wide;
}

Product::Product(const Linear& l, int32_t path)
    : l_(l), book_(l.book), row_bytes_(l.row_bytes), kernels_(&kernels_of(path)), floats_(&floats_of(path)),
      across_(rounds() && LAYOUTS[l.book].per_byte == 0), tiles_(false) {
  if (across_) l_.book = INT8, l_.row_bytes = l.columns;
  if (!rounds()) {
    inputs_.stride = round_up(l.columns, 16);
    return;
  }
  tiles_ = kernels_->linear_in_tiles && suits_tiles(l_);
  tokens_.chunk_bytes = tiles_ ? chunk_of_tiles(l_) : CHUNK;
  tokens_.stride = round_up(l_.row_bytes, tokens_.chunk_bytes) * LAYOUTS[l_.book].per_byte;
  if (l.input_zero_point && possible()) tokens_.zero = *l.input_zero_point - (l.input_bits == 8 ? 128 : 0);
}

bool Product::possible() const {
  const int32_t* zero_point = l_.input_zero_point;
  return !rounds() || !zero_point || (*zero_point >= 0 && *zero_point < 1 << l_.input_bits);
}

int64_t Product::held() const { return tiles_ ? round_up(l_.tokens, TILE_TOKENS) : l_.tokens; }

size_t Product::bytes() const {
  const size_t tokens = size_t(l_.tokens), groups = size_t(l_.groups());
  if (!rounds()) return tokens * (size_t(inputs_.stride) + groups) * 4;
  return tokens * (1 + groups) * 4 + size_t(held() + 1) * size_t(tokens_.stride) + 64;
}

void Product::lend(uint8_t* memory) {
  float* numbers = reinterpret_cast<float*>(memory);
  if (!rounds()) {
    inputs_.x = numbers, inputs_.sums = numbers + l_.tokens * inputs_.stride;
    return;
  }
  tokens_.scale = numbers;
  tokens_.sums = reinterpret_cast<int32_t*>(numbers + l_.tokens);
  int8_t* q = reinterpret_cast<int8_t*>(memory) + round_up(4 * l_.tokens * (1 + l_.groups()), 64);
  tokens_.ones = tokens_.zero ? q : nullptr;
  tokens_.q = q + tokens_.stride;
  std::memset(tokens_.q + l_.tokens * tokens_.stride, 0, size_t((held() - l_.tokens) * tokens_.stride));
}

bool Product::reads_alike(const Product& other) const {
  const Linear &a = l_, &b = other.l_;
  return a.x == b.x && a.tokens == b.tokens && a.columns == b.columns && a.type == b.type && a.function == b.function &&
         a.input_bits == b.input_bits && a.input_scale == b.input_scale && a.input_zero_point == b.input_zero_point &&
         a.groups() == b.groups() && tiles_ == other.tiles_ && tokens_.stride == other.tokens_.stride &&
         tokens_.chunk_bytes == other.tokens_.chunk_bytes && LAYOUTS[a.book].per_byte == LAYOUTS[b.book].per_byte;
}

void Product::make_ready(int64_t first, int64_t last) const {
  if (rounds())
    kernels_->quantize(l_, tokens_, first, last);
  else
    floats_->widen(l_, const_cast<float*>(inputs_.x), const_cast<float*>(inputs_.sums), inputs_.stride);
}

void Product::multiply(int64_t first, int64_t last) const {
  if (!rounds()) return floats_->linear(l_, inputs_, first, last);
  const auto multiply = tiles_ ? kernels_->linear_in_tiles : kernels_->linear;
  if (!across_) return multiply(l_, tokens_, first, last);
  const int64_t together = round_up(WIDENED / l_.columns, 32);  // few enough rows to stay in the second cache
  std::vector<uint8_t> memory;
  for (int64_t row = first; row < last; row += together) {
    const int64_t end = row + together < last ? row + together : last;
    multiply(widened(l_, book_, row_bytes_, row, end, memory), tokens_, row, end);
  }
}

int64_t Product::piece(int64_t threads) const {  // as one may be held up; in tiles, whole blocks of 32 rows
  return round_up((l_.rows + 4 * threads - 1) / (4 * threads), rounds() ? 32 : 4);
}

}  // namespace abridged
