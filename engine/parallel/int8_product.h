// A product with an int8 weight, and what all ways to compute it share.
//
// The layout of a weight: groups of 16 outputs (the last may be narrower), each
// [inputs / 4][outputs][4], so that 64 inputs of 16 outputs are a tile of AMX as they lie, and four
// inputs of one output a lane. A part of a weight, neighbouring inputs of whole groups, lies as the whole
// does; its groups are apart by ``pitch`` inputs, those of the whole.
#pragma once

#include "../kernels/cpu/paged.h"
#include "../kernels/cpu/prefill_amx.h"
#include "../kernels/cpu/threads.h"

// Bytes are multiplied with bytes four at a time in vectors (VNNI), or in tiles. All processors with
// AMX have the former too.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define GS_HAS_VNNI 1
#if defined(GS_HAS_AMX) && defined(__AMX_INT8__)
#define GS_HAS_AMX_INT8 1
#endif
#endif

namespace int8 {
namespace {

using gs::index_t;
constexpr index_t kOutputs = 16, kInputs = 64;  // of a tile

// What keeps all of a number (see int8_digits.h): as many bits as sums have, and of bfloat16 twice its own.
template <class T>
constexpr int kWhole = std::is_same<T, gs::BFloat16>::value ? 2 : 3;

constexpr float kLeastAmount = 1e-12f;  // rows of zeros have some scale, too

template <class T>
struct Product {
  const int8_t* weight;
  const float* scales;  // [outputs]
  const T* x;           // [rows, inputs], rows apart by x_stride
  const T* bias;        // [outputs] or null
  const T* total;       // [rows, outputs] added to the product, or null
  T* out;               // [rows, outputs], rows apart by out_stride, as those of total
  index_t outputs, inputs, rows, x_stride, out_stride, pitch;
  int digits;  // signed bytes that a number of a row is written in; one: it is rounded to int8

  // The group of outputs from ``first``, and where the last ends.
  const int8_t* group(index_t first) const { return weight + first * pitch; }
  const int8_t* end() const {
    const index_t last = (outputs - 1) / kOutputs * kOutputs;
    return group(last) + width(last) * inputs;
  }
  // Bytes between the part of one group and that of the next.
  index_t skipped() const { return (pitch - inputs) * kOutputs; }

  index_t width(index_t first) const { return std::min(kOutputs, outputs - first); }
};

// ``work(begin, end)`` over outputs, cut where groups begin.
template <class Work>
void share_outputs(index_t outputs, int threads, const Work& work) {
  const index_t groups = gs::ceil_div(outputs, kOutputs);
  const index_t each = gs::ceil_div(groups, index_t(threads > 1 ? 4 * threads : 1)) * kOutputs;
  gs::share(threads, gs::ceil_div(outputs, each),
            [&](index_t i) { work(i * each, std::min(outputs, (i + 1) * each)); });
}

#ifdef GS_HAS_VNNI
constexpr index_t kTileBytes = 1024;

__m512 load16(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
__m512 load16(const gs::Half* p, __mmask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}
__m512 load16(const gs::BFloat16* p, __mmask16 mask) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
void store16(float* p, __mmask16 mask, __m512 v) { _mm512_mask_storeu_ps(p, mask, v); }
void store16(gs::Half* p, __mmask16 mask, __m512 v) {
  _mm256_mask_storeu_epi16(p, mask, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
void store16(gs::BFloat16* p, __mmask16 mask, __m512 v) {
#ifdef __AVX512BF16__
  _mm256_mask_storeu_epi16(p, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
#else
  auto upper = reinterpret_cast<__m512i>(gs::Storage<gs::BFloat16>::rounded(v));
  _mm256_mask_storeu_epi16(p, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(upper, 16)));
#endif
}
__mmask16 first_lanes(index_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1; }


// Writes ``sum`` of 16 outputs from ``first`` times their scales, with bias and total.
template <class T>
void finish(const Product<T>& p, index_t row, index_t first, __m512 sum) {
  const __mmask16 mask = first_lanes(p.width(first));
  const index_t to = row * p.out_stride + first;
  sum = _mm512_mul_ps(sum, load16(p.scales + first, mask));
  if (p.bias) sum = _mm512_add_ps(sum, load16(p.bias + first, mask));
  if (p.total) sum = _mm512_add_ps(sum, load16(p.total + to, mask));
  store16(p.out + to, mask, sum);
}
#endif

}  // namespace
}  // namespace int8
