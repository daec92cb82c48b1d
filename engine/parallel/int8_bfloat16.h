// Many rows of bfloat16: the weight of 32 outputs is widened to bfloat16 for a while, which is exact,
// and tiles of bfloat16 are multiplied. Digits would take one and a half times the tiles.
#pragma once

#include "int8_product.h"

#ifdef GS_HAS_AMX_INT8
namespace {

constexpr index_t kPairRows = 32;    // two tiles of rows meet two of outputs
constexpr index_t kRowsKept = 1024;  // laid out in tiles at once
constexpr index_t kStep = 32;        // inputs of a tile of bfloat16
constexpr index_t kWideBytes = 3 << 18;  // of widened weights that a panel of rows meets, in the L2 cache
constexpr float kWidened = 1.0f / (1 << 24);  // what one of a widened weight stands for

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

// A group of outputs from ``first`` as tiles of pairs of inputs, [inputs / 32][2][16][16][2], of
// which ``wide`` is the first or the second.
inline void widen(const Product<gs::BFloat16>& p, index_t first, index_t padded, uint32_t* wide) {
  const index_t stride = p.width(first) * 4;
  const __mmask16 lanes = first_lanes(p.width(first));
  const int8_t* weight = p.weight + first * p.inputs;
  const __m512i top = _mm512_set1_epi32(int(0xff000000u));
  // Each byte becomes the highest of an integer, whose float32 has zeros in its lower half.
  auto of = [](__m512i v) { return _mm512_castps_si512(_mm512_cvtepi32_ps(v)); };
  for (index_t k = 0; k < padded; k += 4, weight += stride, wide += 32) {
    if (k && k % kStep == 0) wide += 256;  // the other group's tile
    __m512i four = k < p.inputs ? _mm512_maskz_loadu_epi32(lanes, weight) : __m512i{};
    __m512i a = of(_mm512_slli_epi32(four, 24));
    __m512i b = of(_mm512_and_si512(_mm512_slli_epi32(four, 16), top));
    __m512i c = of(_mm512_and_si512(_mm512_slli_epi32(four, 8), top));
    __m512i d = of(_mm512_and_si512(four, top));
    _mm512_store_si512(wide, _mm512_or_si512(_mm512_srli_epi32(a, 16), b));
    _mm512_store_si512(wide + 16, _mm512_or_si512(_mm512_srli_epi32(c, 16), d));
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
  for (index_t r = 0; r < std::min(kPairRows, p.rows - row); ++r)
    for (index_t i = 0; i < 2 && first + i * kOutputs < stop; ++i) {
      __m512 sum = _mm512_load_ps(sums + r / 16 * 512 + i * 256 + r % 16 * 16);
      finish(p, row + r, first + i * kOutputs, _mm512_mul_ps(sum, _mm512_set1_ps(kWidened)));
    }
}

// Outputs ``begin`` to ``end`` of all rows in ``tiles``.
inline void multiply_wide(const Product<gs::BFloat16>& p, const gs::BFloat16* tiles,
                          index_t padded, index_t begin, index_t end) {
  const index_t pair = padded * kOutputs;  // elements of two groups, and outputs of some
  const index_t most = std::max<index_t>(1, kWideBytes / (pair * 4)) * 2 * kOutputs;
  uint32_t* wide = gs::scratch<uint32_t, 44>(pair * (std::min(most, end - begin + kOutputs) / 32 + 1));
  alignas(64) float sums[4 * 256];
  const gs::TileConfig config;
  _tile_loadconfig(&config);
  for (index_t block = begin; block < end; block += most) {
    const index_t stop = std::min(end, block + most);
    for (index_t first = block; first < stop; first += kOutputs) {
      const index_t place = (first - block) / kOutputs;
      widen(p, first, padded, wide + place / 2 * pair + place % 2 * 256);
    }
    for (index_t row = 0; row < p.rows; row += kPairRows)
      for (index_t first = block; first < stop; first += 2 * kOutputs) {
        multiply_pair(tiles + row * padded, wide + (first - block) / 32 * pair, padded, sums);
        finish_pair(p, row, first, stop, sums);
      }
  }
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
    p.out += p.rows * p.outputs;
    if (p.total) p.total += p.rows * p.outputs;
  }
}

}  // namespace
#endif
