// Blocks of tokens and rows in vector registers: four columns of a token against four of 16 rows.
#include "attention.hpp"
#include "tiles.hpp"

namespace abridged {
namespace {

template <int>
struct VectorRegisters {
  static constexpr int TOKENS = 8;  // as many sums as hide the latency of one, with registers left for their operands

  void operator()(const int8_t* q, int64_t stride, const uint8_t* tiles, int64_t first, int64_t last, int64_t count,
                  int32_t products[2][2 * TILE * TILE]) const {
    for (int64_t token = 0; token < 2 * TILE && token < count; token += TOKENS) {
      const int8_t* from = q + token * stride;
      Sums sums[TOKENS][2];
      UNROLL_8 for (auto& s : sums) s[0] = s[1] = no_sums();
      for (int64_t k = first; k < last; ++k)
        for (int i = 0; i < TILE; ++i) {
          const uint8_t* weights = tiles + 2 * k * TILE_BYTES + 64 * i;
          const Bytes low = load(weights), high = load(weights + TILE_BYTES);
          UNROLL_8 for (int t = 0; t < TOKENS; ++t) {
            int32_t four;
            std::memcpy(&four, from + t * stride + k * DEPTH + 4 * i, sizeof four);
            const Bytes columns = _mm512_set1_epi32(four);
            sums[t][0] = _mm512_dpbusd_epi32(sums[t][0], low, columns);
            sums[t][1] = _mm512_dpbusd_epi32(sums[t][1], high, columns);
          }
        }
      int32_t* to = products[token / TILE] + token % TILE * TILE;
      UNROLL_8 for (int t = 0; t < TOKENS; ++t) {
        store(to + t * TILE, sums[t][0]);
        store(to + TILE * TILE + t * TILE, sums[t][1]);
      }
    }
  }
};

}  // namespace
}  // namespace abridged

const abridged::Kernels abridged::avx512vnni_kernels = {quantize, linear, linear_in_tiles<VectorRegisters>, attend, attend_all, activate};
