// Few rows times a weight as a checkpoint has it, [outputs][inputs], for one whose rows are looked up
// too: vectors along the inputs, whose lanes are summed at the end.
#pragma once

#include "few_product.h"

#ifdef __AVX512F__
namespace {

inline __m512 add_products(const float*, __m512 sum, __m512i x, __m512i weight) {
  return _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(weight), sum);
}
#ifdef GS_HAS_BF16
inline __m512 add_products(const uint16_t*, __m512 sum, __m512i x, __m512i weight) {
  return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)weight);
}
#endif

// ``kRows`` rows times ``kOutputs`` of 16 outputs from ``first``: sums[kRows][16].
template <int kRows, int kOutputs, class T>
void dot(const Product<T>& p, int64_t first, float* sums) {
  // The same place of the next outputs is asked for.
  const int64_t ahead = kOutputs * p.inputs * int64_t(sizeof(T));
  const T* weight = p.weight + first * p.inputs;
  __m512 found[kRows][kOutputs] = {};
  for (int64_t k = 0; k < p.inputs; k += 64 / sizeof(T)) {
    __m512i some[kOutputs];
    for (int i = 0; i < kOutputs; ++i) {
      const T* at = weight + i * p.inputs + k;
      some[i] = _mm512_loadu_si512(at);
      _mm_prefetch(reinterpret_cast<const char*>(at) + ahead, _MM_HINT_T0);
    }
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = _mm512_loadu_si512(p.x + r * p.x_stride + k);
      for (int i = 0; i < kOutputs; ++i) found[r][i] = add_products(weight, found[r][i], x, some[i]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int i = 0; i < kOutputs; ++i) sums[r * 16 + i] = _mm512_reduce_add_ps(found[r][i]);
}

// At most ``most`` of the rows of ``p``, from ``row``.
template <class T>
Product<T> some_rows(Product<T> p, int64_t row, int64_t most) {
  p.x += row * p.x_stride;
  p.out += row * p.out_stride;
  if (p.total) p.total += row * p.out_stride;
  p.rows = std::min(most, p.rows - row);
  return p;
}

template <int kRows, class T>
void multiply_plain(const Product<T>& p, int64_t begin, int64_t end) {
  if constexpr (kRows > 1)
    if (p.rows < kRows) return multiply_plain<kRows - 1>(p, begin, end);
  constexpr int kOutputs = kRows > 4 ? 2 : 4;
  alignas(64) float sums[kRows * 16];
  for (int64_t first = begin; first < end; first += 16) {
    for (int64_t i = 0; i < 16; i += kOutputs) dot<kRows, kOutputs>(p, first + i, sums + i);
    for (int64_t r = 0; r < kRows; ++r) finish(p, r, first, _mm512_load_ps(sums + r * 16));
  }
}

}  // namespace
#endif
