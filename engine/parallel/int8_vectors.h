// Rows in digits in vectors of VNNI, which multiply unsigned bytes with signed ones: a weight's bytes
// get 128 added, which changes a sum by 128 times the sum of the digits.
#pragma once

#include "int8_digits.h"

#ifdef GS_HAS_VNNI
namespace int8 {
namespace {

constexpr index_t kRowsTogether = 8;  // three sums each, of 32 registers

// ``kRows`` rows from ``row``, all in one panel, times the group of outputs from ``first``:
// sums[kRows][digits][16].
template <class T, int kRows>
void multiply_few(const Product<T>& p, const Digits& all, index_t row, index_t first,
                  int32_t* sums) {
  constexpr index_t kAhead = 4096;  // bytes ahead that memory is asked for
  const index_t panel = row / kPanel, step = all.tiles(panel) * kTileBytes;
  const int8_t* digits = all.panel(panel) + row % kPanel * kDigits * kInputs;
  const int8_t* weight = p.group(first);
  const index_t stride = p.width(first) * 4;
  const __mmask16 lanes = first_lanes(p.width(first));
  __m512i found[kRows][kDigits];
  for (int r = 0; r < kRows; ++r)
    for (int d = 0; d < kDigits; ++d)
      found[r][d] = _mm512_set1_epi32(all.starts[(row + r) * kDigits + d]);
  for (index_t k = 0; k < p.inputs; k += kInputs, digits += step) {
    const index_t count = std::min(kInputs, p.inputs - k);
    const index_t ahead = k + kAhead / kOutputs < p.inputs ? kAhead : kAhead + p.skipped();
    for (index_t i = 0; i < count; i += 4, weight += stride) {
      _mm_prefetch(reinterpret_cast<const char*>(weight) + ahead, _MM_HINT_T0);
      const __m512i raised = _mm512_xor_si512(_mm512_maskz_loadu_epi32(lanes, weight),
                                              _mm512_set1_epi8(-128));
      for (int r = 0; r < kRows; ++r)
        for (int d = 0; d < kDigits; ++d) {
          int32_t four;
          std::memcpy(&four, digits + (r * kDigits + d) * kInputs + i, sizeof four);
          found[r][d] = _mm512_dpbusd_epi32(found[r][d], raised, _mm512_set1_epi32(four));
        }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int d = 0; d < kDigits; ++d)
      _mm512_store_si512(sums + (r * kDigits + d) * kOutputs, found[r][d]);
}

// Outputs ``begin`` to ``end`` of all rows of ``digits``.
template <class T>
void multiply_vectors(const Product<T>& p, const Digits& digits, index_t begin, index_t end) {
  alignas(64) int32_t sums[kRowsTogether * kDigits * kOutputs];
  for (index_t block = begin; block < end; block += kBlock * kOutputs)
    for (index_t row = 0; row < digits.rows; row += kRowsTogether)
      for (index_t first = block; first < std::min(end, block + kBlock * kOutputs);
           first += kOutputs) {
        const index_t count = std::min(kRowsTogether, digits.rows - row);
        switch (count) {
          case 1: multiply_few<T, 1>(p, digits, row, first, sums); break;
          case 2: multiply_few<T, 2>(p, digits, row, first, sums); break;
          case 3: multiply_few<T, 3>(p, digits, row, first, sums); break;
          case 4: multiply_few<T, 4>(p, digits, row, first, sums); break;
          case 5: multiply_few<T, 5>(p, digits, row, first, sums); break;
          case 6: multiply_few<T, 6>(p, digits, row, first, sums); break;
          case 7: multiply_few<T, 7>(p, digits, row, first, sums); break;
          case 8: multiply_few<T, 8>(p, digits, row, first, sums); break;
        }
        finish_rows(p, digits, row, count, first, sums);
      }
}

}  // namespace
}  // namespace int8
#endif
