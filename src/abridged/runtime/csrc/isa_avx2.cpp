// Blocks of tokens and rows in vector registers: four columns of a token against four of 16 rows.
#include "attention.hpp"
#include "tiles.hpp"

namespace abridged {
namespace {

template <int BOOK>
struct VectorRegisters {
  static constexpr int TOKENS = 4;
  // Pairs of products that 16 bits hold: a product is at most the largest code times 128.
  static constexpr int LINES = BOOK == BINARY ? 64 : BOOK == INT4 ? 8 : 32;

  void operator()(const int8_t* q, int64_t stride, const uint8_t* tiles, int64_t first, int64_t last, int64_t count,
                  int32_t products[2][2 * TILE * TILE]) const {
    for (int64_t token = 0; token < 2 * TILE && token < count; token += TOKENS)
      for (int half = 0; half < 2; ++half)
        rows(q + token * stride, stride, tiles + half * TILE_BYTES, first * TILE, last * TILE,
             products[token / TILE] + (half * TILE + token % TILE) * TILE);
  }

  // A line is four columns of 16 rows.
  static void rows(const int8_t* q, int64_t stride, const uint8_t* tiles, int64_t line, int64_t last, int32_t* to) {
    __m256i sums[TOKENS][2] = {};
    for (; line < last; line += LINES) {
      const int64_t end = line + LINES < last ? line + LINES : last;
      __m256i low[TOKENS] = {}, high[TOKENS] = {};  // 8 rows each, in pairs of 16 bits
      for (int64_t i = line; i < end; ++i) {
        const Bytes codes = load(tiles + i / TILE * 2 * TILE_BYTES + i % TILE * CHUNK);
        UNROLL for (int t = 0; t < TOKENS; ++t) {
          int32_t four;
          std::memcpy(&four, q + t * stride + 4 * i, sizeof four);
          const __m256i columns = _mm256_set1_epi32(four);
          if constexpr (is_wide<BOOK>) {
            const Sums s = dot<true>(Sums{{low[t], high[t]}}, codes, Bytes{{columns, columns}});
            low[t] = s.v[0], high[t] = s.v[1];
          } else {
            low[t] = _mm256_add_epi16(low[t], _mm256_maddubs_epi16(codes.v[0], columns));
            high[t] = _mm256_add_epi16(high[t], _mm256_maddubs_epi16(codes.v[1], columns));
          }
          __asm__("" : "+x"(low[t]), "+x"(high[t]));  // else GCC begins with all tokens at once, and runs out of registers
        }
      }
      const __m256i ones = _mm256_set1_epi16(1);
      UNROLL for (int t = 0; t < TOKENS; ++t) {
        sums[t][0] = _mm256_add_epi32(sums[t][0], is_wide<BOOK> ? low[t] : _mm256_madd_epi16(low[t], ones));
        sums[t][1] = _mm256_add_epi32(sums[t][1], is_wide<BOOK> ? high[t] : _mm256_madd_epi16(high[t], ones));
      }
    }
    for (int t = 0; t < TOKENS; ++t) store(to + t * TILE, Bytes{{sums[t][0], sums[t][1]}});
  }
};

}  // namespace
}  // namespace abridged

const abridged::Kernels abridged::avx2_kernels = {quantize, linear, linear_in_tiles<VectorRegisters>, attend, attend_all, activate};
