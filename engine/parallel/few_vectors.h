// Few rows in vectors of outputs, times one element of x (of bfloat16: a pair of them).
#pragma once

#include "few_product.h"

#ifdef __AVX512F__
namespace {

constexpr int64_t kBlock = 64;       // outputs side by side: in float32, and mostly in bfloat16
constexpr int64_t kPanelRows = 7;    // times four vectors of outputs are the sums in registers
constexpr int64_t kMostRows = 24;    // with more oneDNN is as fast
constexpr int64_t kPiece = 64;       // inputs of a block that stay in the first cache
constexpr int64_t kStepsAhead = 32;  // steps ahead that memory is asked for

#ifdef GS_HAS_BF16
inline __m512 add_product(const Narrow&, __m512 sum, __m512i one, __m512i outputs) {
  return _mm512_dpbf16_ps(sum, (__m512bh)one, (__m512bh)outputs);
}
#endif

// ``kRows`` rows from ``row`` times ``kVectors`` vectors of outputs from ``first``, over the inputs
// from ``begin`` to ``end``; ``sums`` of other inputs go from one call to the next.
template <int kRows, int kVectors, class T>
void multiply_vectors(const Product<T>& p, int64_t row, int64_t first, int64_t begin, int64_t end,
                      float* sums) {
  constexpr int64_t kTogether = 4 / sizeof(T);
  const int64_t step = p.block * kTogether;
  const T *weight = p.column(first) + begin * p.block, *x = p.x + row * p.x_stride;
  Sums<kRows, kVectors> found;
  begin ? found.load(sums) : found.clear();
  for (int64_t k = begin; k < end; k += kTogether, weight += step) {
    __m512i outputs[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      outputs[v] = _mm512_loadu_si512(weight + 16 * kTogether * v);
      if (row == 0)  // the first that meet this piece
        _mm_prefetch(reinterpret_cast<const char*>(weight + kStepsAhead * step) + 64 * v,
                     _MM_HINT_T0);
    }
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      int32_t one;
      std::memcpy(&one, x + r * p.x_stride + k, sizeof one);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        found.at[r][v] = add_product(p, found.at[r][v], _mm512_set1_epi32(one), outputs[v]);
    }
  }
  if (end < p.inputs) return found.store(sums);
  found.each([&](int r, int v, __m512 sum) { finish(p, row + r, first + 16 * v, sum); });
}

template <int kRows, int kVectors, class T>
void multiply_panel(const Product<T>& p, int64_t row, int64_t rows, int64_t first, int64_t begin,
                    int64_t end, float* sums) {
  if constexpr (kRows > 1)
    if (rows < kRows)
      return multiply_panel<kRows - 1, kVectors>(p, row, rows, first, begin, end, sums);
  multiply_vectors<kRows, kVectors>(p, row, first, begin, end, sums);
}

// ``kVectors`` vectors of outputs from ``first`` of all rows. Where registers do not hold their sums,
// some rows after others meet a piece of the weight, while it is in the first cache.
template <int kVectors, class T>
void multiply_columns(const Product<T>& p, int64_t first) {
  alignas(64) float sums[kMostRows * kVectors * 16];
  const int64_t panels = gs::ceil_div(p.rows, kPanelRows), rows = gs::ceil_div(p.rows, panels);
  const int64_t piece = panels == 1 ? p.inputs : kPiece;
  for (int64_t k = 0; k < p.inputs; k += piece)
    for (int64_t row = 0; row < p.rows; row += rows)
      multiply_panel<kPanelRows, kVectors>(p, row, std::min(rows, p.rows - row), first, k,
                                           std::min(p.inputs, k + piece),
                                           sums + row * kVectors * 16);
}

template <class T>
void multiply_by_vectors(const Product<T>& p, int64_t begin, int64_t end) {
  if (p.block % kBlock == 0)
    for (int64_t first = begin; first < end; first += kBlock) multiply_columns<4>(p, first);
  else
    for (int64_t first = begin; first < end; first += 32) multiply_columns<2>(p, first);
}

}  // namespace
#endif
