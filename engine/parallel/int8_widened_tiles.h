// Many rows of bfloat16 times a widened weight on the tiles of AMX.
#pragma once

#include "int8_widened.h"

#ifdef GS_HAS_AMX_INT8
namespace int8 {
namespace {

constexpr index_t kPairRows = 32;    // two tiles of rows meet two of outputs
constexpr index_t kRowsKept = 1024;  // laid out in tiles at once

// Rows of x as tiles: of each 32 rows [inputs / 32][2][16][32], behind the last inputs zeros.
inline void lay_out(const Product<gs::BFloat16>& p, gs::BFloat16* tiles, index_t padded,
                    index_t row) {
  const gs::BFloat16* x = p.x + row * p.x_stride;
  gs::BFloat16* to = tiles + row / kPairRows * kPairRows * padded + row % kPairRows * kStep;
  for (index_t k = 0; k < padded; k += kStep, to += kPairRows * kStep) {
    const index_t left = p.inputs - k;
    const __mmask32 mask = left >= kStep ? ~0u : left <= 0 ? 0u : (1u << left) - 1;
    _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(mask, x + k));
  }
}

// 32 rows times two groups of outputs: sums[2][2][16][16], groups side by side.
inline void multiply_pair(const gs::BFloat16* x, const uint32_t* wide, index_t padded, float* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (index_t k = 0; k < padded; k += kStep, x += kPairRows * kStep, wide += 512) {
    _tile_loadd(4, x, 64);
    _tile_loadd(6, wide, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, wide + 256, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, x + 16 * kStep, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

inline void finish_pair(const Product<gs::BFloat16>& p, index_t row, index_t first, index_t stop,
                        const float* sums) {
  for (index_t r = 0; r < std::min(kPairRows, p.rows - row); ++r) {
    const float* at = sums + r / 16 * 512 + r % 16 * 16;
    const __m512 both[] = {_mm512_load_ps(at), _mm512_load_ps(at + 256)};
    finish_widened(p, row + r, first, stop, both);
  }
}

// Outputs ``begin`` to ``end`` of all rows in ``tiles``.
inline void multiply_wide(const Product<gs::BFloat16>& p, const gs::BFloat16* tiles,
                          index_t padded, index_t begin, index_t end) {
  alignas(64) float sums[4 * 256];
  const gs::TileConfig config;
  _tile_loadconfig(&config);
  with_widened(p, padded, begin, end, [&](const uint32_t* wide, index_t block, index_t stop) {
    for (index_t row = 0; row < p.rows; row += kPairRows)
      for (index_t first = block; first < stop; first += 2 * kOutputs) {
        const uint32_t* two = wide + (first - block) / 32 * padded * kOutputs;
        multiply_pair(tiles + row * padded, two, padded, sums);
        finish_pair(p, row, first, stop, sums);
      }
  });
  _tile_release();
}

inline void multiply_widened(Product<gs::BFloat16> p, int threads) {
  const index_t all = p.rows, padded = gs::round_up(p.inputs, kStep);
  const index_t most = gs::round_up(std::min(all, kRowsKept), kPairRows);
  gs::BFloat16* tiles = gs::scratch<gs::BFloat16, 43>(most * padded);
  for (index_t done = 0; done < all; done += kRowsKept) {
    p.rows = std::min(kRowsKept, all - done);
    gs::share_rows(threads, p.rows, p.inputs, [&](index_t first, index_t last) {
      for (index_t row = first; row < last; ++row) lay_out(p, tiles, padded, row);
    });
    share_outputs(p.outputs, threads, [&](index_t begin, index_t end) {
      multiply_wide(p, tiles, padded, begin, end);
    });
    p.x += p.rows * p.x_stride;
    p.out += p.rows * p.out_stride;
    if (p.total) p.total += p.rows * p.out_stride;
  }
}

}  // namespace
}  // namespace int8
#endif
