// Few rows of bfloat16 times a weight as a checkpoint has it, [outputs][inputs], for one whose rows
// are looked up too: vectors along the inputs, whose lanes are summed at the end.
#pragma once

#include "few_product.h"

#ifdef GS_HAS_BF16
namespace {

// ``kRows`` rows times ``kOutputs`` of 16 outputs from ``first``: sums[kRows][16].
template <int kRows, int kOutputs>
void dot(const Narrow& p, int64_t first, float* sums) {
  constexpr int64_t kAhead = 2048;  // inputs ahead that memory is asked for
  const uint16_t* weight = p.weight + first * p.inputs;
  __m512 found[kRows][kOutputs] = {};
  for (int64_t k = 0; k < p.inputs; k += 32) {
    __m512bh some[kOutputs];
    for (int i = 0; i < kOutputs; ++i) {
      some[i] = (__m512bh)_mm512_loadu_si512(weight + i * p.inputs + k);
      _mm_prefetch(reinterpret_cast<const char*>(weight + i * p.inputs + k + kAhead), _MM_HINT_T0);
    }
    for (int r = 0; r < kRows; ++r) {
      const auto x = (__m512bh)_mm512_loadu_si512(p.x + r * p.x_stride + k);
      for (int i = 0; i < kOutputs; ++i) found[r][i] = _mm512_dpbf16_ps(found[r][i], x, some[i]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int i = 0; i < kOutputs; ++i) sums[r * 16 + i] = _mm512_reduce_add_ps(found[r][i]);
}

// At most ``most`` of the rows of ``p``, from ``row``.
inline Narrow some_rows(Narrow p, int64_t row, int64_t most) {
  p.x += row * p.x_stride;
  p.out += row * p.out_stride;
  p.rows = std::min(most, p.rows - row);
  return p;
}

template <int kRows>
void multiply_plain(const Narrow& p, int64_t begin, int64_t end) {
  if constexpr (kRows > 1)
    if (p.rows < kRows) return multiply_plain<kRows - 1>(p, begin, end);
  constexpr int kOutputs = kRows > 4 ? 2 : kRows > 2 ? 4 : 8;
  alignas(64) float sums[kRows * 16];
  for (int64_t first = begin; first < end; first += 16) {
    for (int64_t i = 0; i < 16; i += kOutputs) dot<kRows, kOutputs>(p, first + i, sums + i);
    for (int64_t r = 0; r < kRows; ++r) finish(p, r, first, _mm512_load_ps(sums + r * 16));
  }
}

}  // namespace
#endif
