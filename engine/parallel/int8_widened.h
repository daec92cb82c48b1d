// Many rows of bfloat16: the weight of some outputs is widened to bfloat16 for a while, which is
// exact, and multiplied two inputs at a time, in vectors here. Digits would take one and a half times
// the products.
#pragma once

#include "int8_product.h"

#if defined(GS_HAS_VNNI) && defined(__AVX512BF16__)
#define GS_HAS_WIDENED 1
namespace int8 {
namespace {

constexpr index_t kStep = 32;        // inputs of a tile of bfloat16
constexpr index_t kWideBytes = 3 << 18;  // of widened weights that rows meet, in the L2 cache
constexpr float kWidened = 1.0f / (1 << 24);  // what one of a widened weight stands for
constexpr index_t kWideRows = 12;    // times two vectors of outputs are the sums in registers

// A group of outputs from ``first`` as tiles of pairs of inputs, [inputs / 32][2][16][16][2], of
// which ``wide`` is the first or the second.
inline void widen(const Product<gs::BFloat16>& p, index_t first, index_t padded, uint32_t* wide) {
  const index_t stride = p.width(first) * 4;
  const __mmask16 lanes = first_lanes(p.width(first));
  const int8_t* weight = p.group(first);
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

// ``work(wide, first, stop)`` for outputs ``first`` to ``stop`` at a time, from ``begin`` to ``end``,
// widened: two groups take ``padded`` * 16 of ``wide``.
template <class Work>
void with_widened(const Product<gs::BFloat16>& p, index_t padded, index_t begin, index_t end,
                  const Work& work) {
  const index_t pair = padded * kOutputs;
  const index_t most = std::max<index_t>(1, kWideBytes / (pair * 4)) * 2 * kOutputs;
  uint32_t* wide = gs::scratch<uint32_t, 44>(pair * (std::min(most, end - begin + kOutputs) / 32 + 1));
  for (index_t block = begin; block < end; block += most) {
    const index_t stop = std::min(end, block + most);
    for (index_t first = block; first < stop; first += kOutputs) {
      const index_t place = (first - block) / kOutputs;
      widen(p, first, padded, wide + place / 2 * pair + place % 2 * 256);
    }
    work(wide, block, stop);
  }
}

// Writes one row of two groups of outputs.
inline void finish_widened(const Product<gs::BFloat16>& p, index_t row, index_t first, index_t stop,
                           const __m512* sums) {
  for (index_t i = 0; i < 2 && first + i * kOutputs < stop; ++i)
    finish(p, row, first + i * kOutputs, _mm512_mul_ps(sums[i], _mm512_set1_ps(kWidened)));
}

// ``kRows`` rows from ``row`` times two groups of outputs from ``first``.
template <int kRows>
void multiply_two(const Product<gs::BFloat16>& p, const uint32_t* wide, index_t row, index_t first,
                  index_t stop) {
  __m512 sums[kRows][2] = {};
  const gs::BFloat16* x = p.x + row * p.x_stride;
  for (index_t k = 0; k < p.inputs; k += kStep, x += kStep, wide += 512) {
    const index_t pairs = std::min(kStep, p.inputs - k) / 2;
    for (index_t i = 0; i < pairs; ++i) {
      const auto a = (__m512bh)_mm512_load_si512(wide + i * 16);
      const auto b = (__m512bh)_mm512_load_si512(wide + 256 + i * 16);
      for (int r = 0; r < kRows; ++r) {
        int32_t two;
        std::memcpy(&two, x + r * p.x_stride + 2 * i, sizeof two);
        const auto both = (__m512bh)_mm512_set1_epi32(two);
        sums[r][0] = _mm512_dpbf16_ps(sums[r][0], both, a);
        sums[r][1] = _mm512_dpbf16_ps(sums[r][1], both, b);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) finish_widened(p, row + r, first, stop, sums[r]);
}

template <int kRows>
void multiply_rows_widened(const Product<gs::BFloat16>& p, const uint32_t* wide, index_t row,
                           index_t first, index_t stop) {
  if constexpr (kRows > 1)
    if (p.rows - row < kRows)
      return multiply_rows_widened<kRows - 1>(p, wide, row, first, stop);
  const index_t pair = gs::round_up(p.inputs, kStep) * kOutputs;
  for (; first < stop; first += 2 * kOutputs, wide += pair)
    multiply_two<kRows>(p, wide, row, first, stop);
}

inline void multiply_by_widening(const Product<gs::BFloat16>& p, int threads) {
  share_outputs(p.outputs, threads, [&](index_t begin, index_t end) {
    with_widened(p, gs::round_up(p.inputs, kStep), begin, end,
                 [&](const uint32_t* wide, index_t first, index_t stop) {
                   for (index_t row = 0; row < p.rows; row += kWideRows)
                     multiply_rows_widened<kWideRows>(p, wide, row, first, stop);
                 });
  });
}

}  // namespace
}  // namespace int8
#endif
