// Rows in digits: x = (d2 * 256**2 + d1 * 256 + d0) * a unit, each digit a signed byte. Bytes are
// multiplied with bytes exactly, and the weight is read as it lies. Of three digits 23 bits below the
// largest number of the row are kept, as sums in float32 keep; of two 15, where bfloat16 has 8 of each
// number: all of those down to a 64th of the largest. One digit is a row rounded to int8.
#pragma once

#include "int8_product.h"

#ifdef GS_HAS_VNNI
namespace int8 {
namespace {

constexpr index_t kPlaces = 96;      // digits of rows: the six tiles beside a weight's and one
constexpr index_t kMostRows = 256;   // whose digits are kept at once: they fit the L2 cache
constexpr index_t kBlock = 8;        // groups of outputs that a panel meets before the next panel

// Rows of x in digits: of each panel [inputs / 64][tiles][16][64], rows of tiles in the order of
// (row, digit).
struct Digits {
  int8_t* bytes;
  float* units;     // [rows]: what the lowest digit counts
  int32_t* starts;  // [rows][digits]: where sums of int8_vectors.h begin; null for tiles
  index_t padded, rows, count;  // count: digits of a number

  index_t panel_size() const { return kPlaces / count; }
  index_t num_panels() const { return gs::ceil_div(rows, panel_size()); }
  index_t panel_rows(index_t panel) const {
    return std::min(panel_size(), rows - panel * panel_size());
  }
  index_t tiles(index_t panel) const { return gs::ceil_div(count * panel_rows(panel), 16); }
  int8_t* panel(index_t panel) const { return bytes + panel * kPlaces * padded; }
};

// Calls ``work`` with ``count`` as a constant.
template <class Work>
void with_digits(index_t count, const Work& work) {
  switch (count) {
    case 1: return work(std::integral_constant<int, 1>());
    case 2: return work(std::integral_constant<int, 2>());
    case 3: return work(std::integral_constant<int, 3>());
  }
}

// The digits of ``rows`` at once in memory of this thread; a little more than is written, since whole
// tiles are read.
inline Digits room_for(index_t rows, index_t inputs, int count, bool has_starts) {
  const index_t padded = gs::round_up(inputs, kInputs);
  const index_t places = gs::round_up(rows, kPlaces / count) * count;
  return {gs::scratch<int8_t, 40>(places * padded), gs::scratch<float, 41>(rows),
          has_starts ? gs::scratch<int32_t, 45>(rows * count) : nullptr, padded, rows, count};
}

// What one of the lowest digit stands for: a power of two, by which the row's largest number has 15 or
// 23 bits, and its top digit no overflow; of one digit a 127th of the largest. NaN where a number is
// not finite, so that all outputs are NaN.
template <int kDigits, class T>
float unit_of(const T* x, index_t n) {
  __m512 most = _mm512_setzero_ps();
  __mmask16 is_finite = 0xffff;
  for (index_t i = 0; i < n; i += 16) {
    __m512 v = _mm512_abs_ps(load16(x + i, first_lanes(n - i)));
    is_finite &= _mm512_cmp_ps_mask(v, _mm512_set1_ps(3.4028235e38f), _CMP_LE_OQ);
    most = _mm512_max_ps(most, v);
  }
  if (is_finite != 0xffff) return NAN;
  const float largest = _mm512_reduce_max_ps(most);
  if (kDigits == 1) return std::max(largest, kLeastAmount) / 127;
  constexpr int kBits = 8 * kDigits - 1;
  constexpr float kMost = 127 * (kDigits == 3 ? 65536 + 256 + 1 : 256 + 1);
  int exponent = 0;
  const float part = std::frexp(largest, &exponent);
  const int up = part * (1 << kBits) <= kMost ? kBits : kBits - 1;
  return std::ldexp(1.0f, std::max(exponent - up, -126));
}

template <int kDigits, class T>
void write_digits(const Product<T>& p, const Digits& digits, index_t row) {
  constexpr index_t kPanel = kPlaces / kDigits;
  const T* x = p.x + row * p.x_stride;
  const float unit = digits.units[row] = unit_of<kDigits>(x, p.inputs);
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
    __m512i left = _mm512_cvtps_epi32(v);
    const index_t at = k / kInputs * step + k % kInputs;
    for (index_t d = 0; d < kDigits; ++d) {
      if (d) left = _mm512_srai_epi32(_mm512_add_epi32(left, half), 8);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to[d] + at), _mm512_cvtepi32_epi8(left));
    }
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

// Writes rows ``begin`` to ``end``.
template <class T>
void write_rows(const Product<T>& p, const Digits& digits, index_t begin, index_t end) {
  with_digits(digits.count, [&](auto count) {
    for (index_t row = begin; row < end; ++row) write_digits<count()>(p, digits, row);
  });
}

// ``count`` rows from ``row`` of the group of outputs from ``first``, whose sums[count][digits][16] are.
template <class T>
void finish_rows(const Product<T>& p, const Digits& digits, index_t row, index_t count,
                 index_t first, const int32_t* sums) {
  auto digit = [&](index_t d) { return _mm512_cvtepi32_ps(_mm512_load_si512(sums + d * 16)); };
  for (const index_t end = row + count; row < end; ++row, sums += digits.count * 16) {
    __m512 sum = digit(digits.count - 1);
    for (index_t d = digits.count - 2; d >= 0; --d)
      sum = _mm512_fmadd_ps(sum, _mm512_set1_ps(256), digit(d));
    finish(p, row, first, _mm512_mul_ps(sum, _mm512_set1_ps(digits.units[row])));
  }
}

}  // namespace
}  // namespace int8
#endif
