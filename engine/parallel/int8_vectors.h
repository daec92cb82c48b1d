// Rows in digits in vectors of VNNI, which multiply unsigned bytes with signed ones: a weight's bytes
// get 128 added, which changes a sum by 128 times the sum of the digits.
#pragma once

#include "int8_digits.h"

#ifdef GS_HAS_VNNI
namespace int8 {
namespace {

constexpr int kSums = 24;  // of 32 registers

// A weight's outputs that are multiplied together; ``skipped`` bytes lie between it and the next.
struct Group {
  const int8_t* weight;
  index_t width, inputs, skipped;
};

// ``kCount`` digits of rows from ``row``, all in one panel, times a group: sums[kCount][16].
template <int kCount>
void multiply_few(const Group& group, const Digits& all, index_t row, int32_t* sums) {
  constexpr index_t kAhead = 4096;  // bytes ahead that memory is asked for
  const index_t panel = row / all.panel_size(), step = all.tiles(panel) * kTileBytes;
  const int8_t* digits = all.panel(panel) + row % all.panel_size() * all.count * kInputs;
  const int8_t* weight = group.weight;
  const index_t stride = group.width * 4;
  const __mmask16 lanes = first_lanes(group.width);
  __m512i found[kCount];
#pragma GCC unroll 24
  for (int d = 0; d < kCount; ++d) found[d] = _mm512_set1_epi32(all.starts[row * all.count + d]);
  for (index_t k = 0; k < group.inputs; k += kInputs, digits += step) {
    const index_t count = std::min(kInputs, group.inputs - k);
    const index_t ahead = k + kAhead / kOutputs < group.inputs ? kAhead : kAhead + group.skipped;
    for (index_t i = 0; i < count; i += 4, weight += stride) {
      _mm_prefetch(reinterpret_cast<const char*>(weight) + ahead, _MM_HINT_T0);
      const __m512i raised = _mm512_xor_si512(_mm512_maskz_loadu_epi32(lanes, weight),
                                              _mm512_set1_epi8(-128));
#pragma GCC unroll 24
      for (int d = 0; d < kCount; ++d) {
        int32_t four;
        std::memcpy(&four, digits + d * kInputs + i, sizeof four);
        found[d] = _mm512_dpbusd_epi32(found[d], raised, _mm512_set1_epi32(four));
      }
    }
  }
#pragma GCC unroll 24
  for (int d = 0; d < kCount; ++d) _mm512_store_si512(sums + d * kOutputs, found[d]);
}

// The same of ``count``, kSums at most.
template <int kCount = kSums>
void multiply_up_to(index_t count, const Group& group, const Digits& all, index_t row,
                    int32_t* sums) {
  if constexpr (kCount > 1)
    if (count < kCount) return multiply_up_to<kCount - 1>(count, group, all, row, sums);
  multiply_few<kCount>(group, all, row, sums);
}

// Outputs ``begin`` to ``end`` of all rows of ``digits``.
template <class T>
void multiply_vectors(const Product<T>& p, const Digits& digits, index_t begin, index_t end) {
  alignas(64) int32_t sums[kSums * kOutputs];
  const index_t most = kSums / digits.count, size = digits.panel_size();
  for (index_t block = begin; block < end; block += kBlock * kOutputs)
    for (index_t row = 0, count; row < digits.rows; row += count) {
      // A panel's rows in parts of about one size: a few sums alone would wait for each other.
      const index_t left = std::min(size - row % size, digits.rows - row);
      count = gs::ceil_div(left, gs::ceil_div(left, most));
      for (index_t first = block; first < std::min(end, block + kBlock * kOutputs);
           first += kOutputs) {
        const Group group{p.group(first), p.width(first), p.inputs, p.skipped()};
        multiply_up_to(count * digits.count, group, digits, row, sums);
        finish_rows(p, digits, row, count, first, sums);
      }
    }
}

}  // namespace
}  // namespace int8
#endif
