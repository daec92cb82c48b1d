// Few rows of bfloat16 on the tiles of AMX.
#pragma once

#include "few_product.h"

#ifdef GS_HAS_AMX
namespace {

// How many tile steps ahead memory is asked for: about what arrives while eight are multiplied.
constexpr int64_t kAhead = 8;
constexpr int64_t kPanel = 16;  // rows of a tile
constexpr int64_t kColumns = 32;

// Outputs ``first`` to ``first + kColumns``: tiles 0 to 3 sum, 4 and 5 hold x, 6 and 7 the weight.
template <bool kIsTwoPanels>
void multiply_tiles(const Narrow& p, int64_t first) {
  alignas(64) float sums[2 * kPanel * kColumns];
  const uint16_t* weight = p.column(first);
  const int64_t pairs = p.block * 4, step = p.block * 32, x_bytes = p.x_stride * 2;
  _tile_zero(0);
  _tile_zero(1);
  if (kIsTwoPanels) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < p.inputs; k += 32, weight += step) {
    _tile_loadd(4, p.x + k, x_bytes);
    _tile_loadd(6, weight, pairs);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, weight + 32, pairs);
    _tile_dpbf16ps(1, 4, 7);
    if (kIsTwoPanels) {
      _tile_loadd(5, p.x + kPanel * p.x_stride + k, x_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    const char* ahead = reinterpret_cast<const char*>(weight + kAhead * step);
    for (int64_t pair = 0; pair < 16; ++pair) {
      _mm_prefetch(ahead + pair * pairs, _MM_HINT_T0);
      _mm_prefetch(ahead + pair * pairs + 64, _MM_HINT_T0);
    }
  }
  _tile_stored(0, sums, kColumns * 4);
  _tile_stored(1, sums + 16, kColumns * 4);
  if (kIsTwoPanels) {
    _tile_stored(2, sums + kPanel * kColumns, kColumns * 4);
    _tile_stored(3, sums + kPanel * kColumns + 16, kColumns * 4);
  }
  for (int64_t row = 0; row < p.rows; ++row)
    for (int64_t column = 0; column < kColumns; column += 16)
      finish(p, row, first + column, _mm512_load_ps(sums + row * kColumns + column));
}

inline void multiply_by_tiles(const Narrow& p, int64_t begin, int64_t end) {
  gs::TileConfig config;
  const bool is_two = p.rows > kPanel;
  const uint8_t low = is_two ? kPanel : p.rows, high = is_two ? p.rows - kPanel : kPanel;
  config.rows[0] = config.rows[1] = config.rows[4] = low;
  config.rows[2] = config.rows[3] = config.rows[5] = high;
  _tile_loadconfig(&config);
  for (int64_t first = begin; first < end; first += kColumns)
    is_two ? multiply_tiles<true>(p, first) : multiply_tiles<false>(p, first);
  _tile_release();
}

}  // namespace
#endif
