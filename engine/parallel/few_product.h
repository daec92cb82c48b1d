// A product of few rows with a weight as oneDNN packs it, and what all ways to compute it share.
//
// The layout: blocks of ``block`` outputs. Of bfloat16 each is [inputs / 2][block][2], so that 16
// outputs of 32 inputs are one tile of AMX as it lies, and x is the other. Of float32 it is
// [inputs][block]. A weight is read once and in its order. A part of a weight, some blocks' neighbouring
// inputs, lies as the whole does; its blocks are apart by ``pitch`` inputs, those of the whole.
#pragma once

#include "../kernels/cpu/prefill_amx.h"
#include "../kernels/cpu/threads.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define GS_HAS_BF16 1
#endif

namespace {

template <class T>
struct Product {
  const T* weight;
  const T* x;      // [rows, inputs], rows apart by x_stride
  const T* bias;   // [outputs] or null
  const T* total;  // [rows, outputs] added to the product, or null
  T* out;          // [rows, outputs], rows apart by out_stride, as those of total
  int64_t block, outputs, inputs, rows, x_stride, out_stride, pitch;

  const T* column(int64_t first) const {
    constexpr int64_t kTogether = 4 / sizeof(T);
    return weight + first / block * block * pitch + first % block * kTogether;
  }
};
using Narrow = Product<uint16_t>;
using Wide = Product<float>;

#ifdef __AVX512F__
inline __m512 widened(const float* from) { return _mm512_loadu_ps(from); }

// Sums that stay in registers while inputs are added. Its loops are unrolled early: left to itself the
// compiler kept the array in memory around each piece of inputs, for a tenth to a third of the time.
template <int kRows, int kVectors>
struct Sums {
  __m512 at[kRows][kVectors];

  // ``work(r, v, sum)`` for each.
  template <class Work>
  void each(const Work& work) {
#pragma GCC unroll 28
    for (int i = 0; i < kRows * kVectors; ++i)
      work(i / kVectors, i % kVectors, at[i / kVectors][i % kVectors]);
  }
  void clear() {
    each([](int, int, __m512& sum) { sum = _mm512_setzero_ps(); });
  }
  // From and to [kRows][kVectors][16].
  void load(const float* from) {
    each([=](int r, int v, __m512& sum) { sum = _mm512_load_ps(from + (r * kVectors + v) * 16); });
  }
  void store(float* to) {
    each([=](int r, int v, __m512 sum) { _mm512_store_ps(to + (r * kVectors + v) * 16, sum); });
  }
};

// Writes one row of 16 outputs from ``column``.
inline void finish(const Wide& p, int64_t row, int64_t column, __m512 sum) {
  const int64_t to = row * p.out_stride + column;
  if (p.bias) sum = _mm512_add_ps(sum, _mm512_loadu_ps(p.bias + column));
  if (p.total) sum = _mm512_add_ps(sum, _mm512_loadu_ps(p.total + to));
  _mm512_storeu_ps(p.out + to, sum);
}
#endif

#ifdef GS_HAS_BF16
inline __m512 widened(const uint16_t* from) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// Writes one row of 16 outputs from ``column``.
inline void finish(const Narrow& p, int64_t row, int64_t column, __m512 sum) {
  const int64_t to = row * p.out_stride + column;
  if (p.bias) sum = _mm512_add_ps(sum, widened(p.bias + column));
  if (p.total) sum = _mm512_add_ps(sum, widened(p.total + to));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p.out + to),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sum)));
}
#endif

}  // namespace
