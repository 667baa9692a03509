// Blocks of tokens and rows in AMX's tile registers.
#include "attention.hpp"
#include "tiles.hpp"

namespace abridged {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t columns[16] = {};
  uint8_t rows[16] = {};
};

template <int>
struct TileRegisters {
  TileRegisters() {
    TileConfig config;
    for (int i = 0; i < 8; ++i) config.columns[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
  }
  ~TileRegisters() { _tile_release(); }

  void operator()(const int8_t* q, int64_t stride, const uint8_t* tiles, int64_t first, int64_t last, int64_t,
                  int32_t products[2][2 * TILE * TILE]) const {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = first; k < last; ++k) {
      _tile_loadd(4, q + k * DEPTH, stride);
      _tile_loadd(6, tiles + 2 * k * TILE_BYTES, DEPTH);
      _tile_dpbsud(0, 4, 6);
      _tile_loadd(7, tiles + (2 * k + 1) * TILE_BYTES, DEPTH);
      _tile_dpbsud(1, 4, 7);
      _tile_loadd(5, q + TILE * stride + k * DEPTH, stride);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
    _tile_stored(0, products[0], 64);
    _tile_stored(1, products[0] + TILE * TILE, 64);
    _tile_stored(2, products[1], 64);
    _tile_stored(3, products[1] + TILE * TILE, 64);
  }
};

}  // namespace
}  // namespace abridged

const abridged::Kernels abridged::amx_kernels = {quantize, linear, linear_in_tiles<TileRegisters>, attend, attend_all, activate};
