// Rows in digits on the tiles of AMX, into which a weight goes as it lies.
#pragma once

#include "int8_digits.h"

#ifdef GS_HAS_AMX_INT8
namespace int8 {
namespace {

// One panel's digits times the group of outputs from ``first``: sums[tiles][16][16].
template <class T, int kTiles>
void multiply_panel(const Product<T>& p, const int8_t* digits, index_t padded, index_t first,
                    int32_t* sums) {
  // How many tiles ahead memory is asked for, and into which cache: with many rows the first level
  // is the digits'.
  constexpr index_t kAhead = kTiles < 3 ? 8 : 24;
  constexpr _mm_hint kCache = kTiles < 3 ? _MM_HINT_T0 : _MM_HINT_T1;
  const index_t stride = p.width(first) * 4;
  const int8_t *weight = p.group(first), *end = p.end();
  alignas(64) int8_t last[kTileBytes];
  _tile_zero(0);
  if (kTiles > 1) _tile_zero(1);
  if (kTiles > 2) _tile_zero(2);
  if (kTiles > 3) _tile_zero(3);
  if (kTiles > 4) _tile_zero(4);
  if (kTiles > 5) _tile_zero(5);
  for (index_t k = 0; k < padded; k += kInputs, weight += 16 * stride) {
    index_t apart = stride;
    const index_t ahead = kAhead * kTileBytes + (k + kAhead * kInputs < p.inputs ? 0 : p.skipped());
    // What lies behind a tile's own bytes meets digits of zero, or outputs that are left out.
    if (weight + 15 * stride + 64 <= end) {
      for (index_t line = 0; line < kTileBytes; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(weight) + ahead + line, kCache);
      _tile_loadd(7, weight, apart);
    } else {
      std::memset(last, 0, sizeof last);
      for (index_t at = 0; at < 16 && weight + at * stride < end; ++at)
        std::memcpy(last + at * 64, weight + at * stride, stride);
      _tile_loadd(7, last, 64);
    }
#define GS_TILE(i)                                 \
  if (kTiles > i) {                                \
    _tile_loadd(6, digits + i * kTileBytes, 64);   \
    _tile_dpbssd(i, 6, 7);                         \
  }
    GS_TILE(0) GS_TILE(1) GS_TILE(2) GS_TILE(3) GS_TILE(4) GS_TILE(5)
#undef GS_TILE
    digits += kTiles * kTileBytes;
  }
  _tile_stored(0, sums, 64);
  if (kTiles > 1) _tile_stored(1, sums + 256, 64);
  if (kTiles > 2) _tile_stored(2, sums + 512, 64);
  if (kTiles > 3) _tile_stored(3, sums + 768, 64);
  if (kTiles > 4) _tile_stored(4, sums + 1024, 64);
  if (kTiles > 5) _tile_stored(5, sums + 1280, 64);
}

// Outputs ``begin`` to ``end`` of all rows of ``digits``.
template <class T>
void multiply_tiles(const Product<T>& p, const Digits& digits, index_t begin, index_t end) {
  alignas(64) int32_t sums[kPlaces * kOutputs];
  gs::TileConfig config;
  const index_t places = digits.rows * digits.count;
  if (places < 16) config.rows[0] = config.rows[6] = places;
  _tile_loadconfig(&config);
  for (index_t block = begin; block < end; block += kBlock * kOutputs)
    for (index_t panel = 0; panel < digits.num_panels(); ++panel)
      for (index_t first = block; first < std::min(end, block + kBlock * kOutputs);
           first += kOutputs) {
        const int8_t* bytes = digits.panel(panel);
        switch (digits.tiles(panel)) {
          case 1: multiply_panel<T, 1>(p, bytes, digits.padded, first, sums); break;
          case 2: multiply_panel<T, 2>(p, bytes, digits.padded, first, sums); break;
          case 3: multiply_panel<T, 3>(p, bytes, digits.padded, first, sums); break;
          case 4: multiply_panel<T, 4>(p, bytes, digits.padded, first, sums); break;
          case 5: multiply_panel<T, 5>(p, bytes, digits.padded, first, sums); break;
          case 6: multiply_panel<T, 6>(p, bytes, digits.padded, first, sums); break;
        }
        finish_rows(p, digits, panel * digits.panel_size(), digits.panel_rows(panel), first, sums);
      }
  _tile_release();
}

}  // namespace
}  // namespace int8
#endif
