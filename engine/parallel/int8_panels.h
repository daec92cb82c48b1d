// Many rows of bfloat16 where products of bfloat16 are slow: pieces of the weight become floats, as
// few_many.h has it.
#pragma once

#include "few_multiply.h"
#include "int8_product.h"

#if defined(GS_HAS_VNNI) && defined(GS_HAS_BF16)
#define GS_HAS_PANELS 1
namespace int8 {
namespace {

struct FloatWeight {
  // Inputs ``begin`` to ``end`` of 32 outputs from ``first`` as [inputs][32] floats.
  template <class T>
  static void widen(const Product<T>& p, index_t first, index_t begin, index_t end, float* wide) {
    for (index_t group = 0; group < 2; ++group) {
      const int8_t* weight = p.weight + (first + group * kOutputs) * p.inputs + begin * kOutputs;
      float* to = wide + group * kOutputs;
      for (index_t k = begin; k < end; k += 4, weight += 4 * kOutputs, to += 4 * 32) {
        const __m512i four = _mm512_loadu_si512(weight);
        put(_mm512_slli_epi32(four, 24), to);
        put(_mm512_slli_epi32(four, 16), to + 32);
        put(_mm512_slli_epi32(four, 8), to + 64);
        put(four, to + 96);
      }
    }
  }

 private:
  // The highest byte of each integer, as a float.
  static void put(__m512i at_top, float* to) {
    _mm512_store_ps(to, _mm512_cvtepi32_ps(_mm512_srai_epi32(at_top, 24)));
  }
};

template <class T>
bool fits_panels(const Product<T>& p) { return p.outputs % 32 == 0 && p.inputs % 16 == 0; }

template <class T>
void multiply_by_panels(const Product<T>& p, int threads) {
  gs::with_team(threads, [&](gs::Team& team) { ::multiply_panels<FloatWeight>(p, team, 32); });
}

}  // namespace
}  // namespace int8
#endif
