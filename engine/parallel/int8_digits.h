// Rows in digits: x = (d2 * 256**2 + d1 * 256 + d0) * a power of two, each digit a signed byte. Bytes
// are multiplied with bytes exactly, and the weight is read as it lies. 24 bits below the largest
// number of the row are kept, which is what sums in float32 keep.
#pragma once

#include "int8_product.h"

#ifdef GS_HAS_VNNI
namespace int8 {
namespace {

constexpr index_t kDigits = 3;
constexpr index_t kPanel = 32;       // rows whose digits are the six tiles beside a weight's and one
constexpr index_t kMostRows = 256;   // whose digits are kept at once: they fit the L2 cache
constexpr index_t kBlock = 8;        // groups of outputs that a panel meets before the next panel

// Rows of x in digits: of each panel [inputs / 64][tiles][16][64], rows of tiles in the order of
// (row, digit).
struct Digits {
  int8_t* bytes;
  float* units;     // [rows]: what the lowest digit counts
  int32_t* starts;  // [rows][digits]: where sums of int8_vectors.h begin; null for tiles
  index_t padded, rows;

  index_t panel_rows(index_t panel) const { return std::min(kPanel, rows - panel * kPanel); }
  index_t tiles(index_t panel) const { return gs::ceil_div(kDigits * panel_rows(panel), 16); }
  int8_t* panel(index_t panel) const { return bytes + panel * kPanel * kDigits * padded; }
};

// The power of two by which a row is multiplied so that its largest number has 23 bits, and its
// top digit no overflow; NaN where a number is not finite, so that all outputs are NaN.
template <class T>
float unit_of(const T* x, index_t n) {
  __m512 most = _mm512_setzero_ps();
  __mmask16 is_finite = 0xffff;
  for (index_t i = 0; i < n; i += 16) {
    __m512 v = _mm512_abs_ps(load16(x + i, first_lanes(n - i)));
    is_finite &= _mm512_cmp_ps_mask(v, _mm512_set1_ps(3.4028235e38f), _CMP_LE_OQ);
    most = _mm512_max_ps(most, v);
  }
  if (is_finite != 0xffff) return NAN;
  int exponent = 0;
  const float part = std::frexp(_mm512_reduce_max_ps(most), &exponent);
  constexpr float kMost = 127 * 65536 + 127 * 256 + 127;
  const int up = part * 8388608.0f <= kMost ? 23 : 22;
  return std::ldexp(1.0f, std::max(exponent - up, -126));
}

template <class T>
void write_digits(const Product<T>& p, const Digits& digits, index_t row) {
  const T* x = p.x + row * p.x_stride;
  const float unit = digits.units[row] = unit_of(x, p.inputs);
  const __m512 factor = _mm512_set1_ps(1.0f / unit);
  const __m512i half = _mm512_set1_epi32(128);
  const index_t panel = row / kPanel, step = digits.tiles(panel) * kTileBytes;
  int8_t* to[kDigits];
  for (index_t d = 0; d < kDigits; ++d) {
    const index_t place = row % kPanel * kDigits + d;
    to[d] = digits.panel(panel) + place * kInputs;  // 16 places are a tile
  }
  for (index_t k = 0; k < digits.padded; k += 16) {
    __m512 v = _mm512_mul_ps(load16(x + k, first_lanes(p.inputs - k)), factor);
    __m512i d0 = _mm512_cvtps_epi32(v);
    __m512i d1 = _mm512_srai_epi32(_mm512_add_epi32(d0, half), 8);
    __m512i d2 = _mm512_srai_epi32(_mm512_add_epi32(d1, half), 8);
    const index_t at = k / kInputs * step + k % kInputs;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to[0] + at), _mm512_cvtepi32_epi8(d0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to[1] + at), _mm512_cvtepi32_epi8(d1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to[2] + at), _mm512_cvtepi32_epi8(d2));
  }
  if (!digits.starts) return;
  for (index_t d = 0; d < kDigits; ++d) {
    __m512i sum = _mm512_setzero_si512();
    for (index_t k = 0; k < digits.padded; k += kInputs)
      sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1),
                                _mm512_loadu_si512(to[d] + k / kInputs * step));
    digits.starts[row * kDigits + d] = -128 * _mm512_reduce_add_epi32(sum);
  }
}

// ``count`` rows from ``row`` of the group of outputs from ``first``, whose sums[count][digits][16] are.
template <class T>
void finish_rows(const Product<T>& p, const Digits& digits, index_t row, index_t count,
                 index_t first, const int32_t* sums) {
  for (const index_t end = row + count; row < end; ++row, sums += kDigits * 16) {
    __m512 d0 = _mm512_cvtepi32_ps(_mm512_load_si512(sums));
    __m512 d1 = _mm512_cvtepi32_ps(_mm512_load_si512(sums + 16));
    __m512 d2 = _mm512_cvtepi32_ps(_mm512_load_si512(sums + 32));
    __m512 sum = _mm512_fmadd_ps(d2, _mm512_set1_ps(256), d1);
    sum = _mm512_fmadd_ps(sum, _mm512_set1_ps(256), d0);
    finish(p, row, first, _mm512_mul_ps(sum, _mm512_set1_ps(digits.units[row])));
  }
}

}  // namespace
}  // namespace int8
#endif
