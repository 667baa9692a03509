// Blocks of tokens and rows in vector registers: four columns of a token against four of 16 rows.
#include "attention.hpp"
#include "tiles.hpp"

namespace abridged {
namespace {

template <int BOOK>
struct VectorRegisters {
  static constexpr int TOKENS = 4;
  // A line is four columns of 16 rows. So many lines' products 16 bits hold: one is at most the largest code times 128.
  static constexpr int LINES = BOOK == BINARY ? 64 : BOOK == INT4 ? 8 : 32;
  static constexpr int SPAN = LINES < TILE ? LINES : TILE;  // lines beside each other

  void operator()(const int8_t* q, int64_t stride, const uint8_t* tiles, int64_t first, int64_t last, int64_t count,
                  int32_t products[2][2 * TILE * TILE]) const {
    for (int64_t token = 0; token < 2 * TILE && token < count; token += TOKENS)
      for (int half = 0; half < 2; ++half)
        rows(q + token * stride + first * DEPTH, stride, tiles + (2 * first + half) * TILE_BYTES, last - first,
             products[token / TILE] + (half * TILE + token % TILE) * TILE);
  }

  // A function of its own, as all registers are needed in it.
  __attribute__((noinline)) static void rows(const int8_t* q, int64_t stride, const uint8_t* tiles, int64_t steps, int32_t* to) {
    const int64_t spans = steps * (TILE / SPAN);
    Sums sums[TOKENS];
    UNROLL for (Sums& s : sums) s = no_sums();
    for (int64_t span = 0; span < spans;) {
      __m256i low[TOKENS], high[TOKENS];  // 8 rows each, in pairs of 16 bits
      UNROLL for (int t = 0; t < TOKENS; ++t) low[t] = high[t] = _mm256_setzero_si256();
      for (int i = 0; i < LINES / SPAN && span < spans; ++i, ++span) {
        const uint8_t* weights = tiles + span / (TILE / SPAN) * 2 * TILE_BYTES + span % (TILE / SPAN) * SPAN * CHUNK;
        const int8_t *from = q + span * SPAN * 4, *end = from + SPAN * 4;
        for (; from < end; from += 4, weights += CHUNK) {
          const Bytes codes = load(weights);
          UNROLL for (int t = 0; t < TOKENS; ++t) {
            int32_t four;
            std::memcpy(&four, from + t * stride, sizeof four);
            const __m256i columns = _mm256_set1_epi32(four);
            if constexpr (is_wide<BOOK>) {
              const Sums s = dot<true>(Sums{{low[t], high[t]}}, codes, Bytes{{columns, columns}});
              low[t] = s.v[0], high[t] = s.v[1];
            } else {
              add_pairs(low[t], _mm256_maddubs_epi16(codes.v[0], columns));
              add_pairs(high[t], _mm256_maddubs_epi16(codes.v[1], columns));
            }
          }
        }
      }
      const __m256i ones = _mm256_set1_epi16(1);
      UNROLL for (int t = 0; t < TOKENS; ++t) {
        sums[t].v[0] = _mm256_add_epi32(sums[t].v[0], is_wide<BOOK> ? low[t] : _mm256_madd_epi16(low[t], ones));
        sums[t].v[1] = _mm256_add_epi32(sums[t].v[1], is_wide<BOOK> ? high[t] : _mm256_madd_epi16(high[t], ones));
      }
    }
    for (int t = 0; t < TOKENS; ++t) store(to + t * TILE, Bytes{{sums[t].v[0], sums[t].v[1]}});
  }
};

}  // namespace
}  // namespace abridged

const abridged::Kernels abridged::avx2_kernels = {quantize, linear, linear_in_tiles<VectorRegisters>, attend, attend_all, activate};
