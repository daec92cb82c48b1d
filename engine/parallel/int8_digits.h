// Rows in digits: x = (d2 * 256**2 + d1 * 256 + d0) * a power of two, each digit a signed byte. Bytes
// are multiplied with bytes exactly, and the weight goes into tiles as it lies. 24 bits below the
// largest number of the row are kept, which is what sums in float32 keep.
#pragma once

#include "int8_product.h"

#ifdef GS_HAS_AMX_INT8
namespace {

constexpr index_t kDigits = 3;
constexpr index_t kPanel = 32;       // rows whose digits are the six tiles beside a weight's and one
constexpr index_t kMostRows = 256;   // whose digits are kept at once: they fit the L2 cache
constexpr index_t kBlock = 8;        // groups of outputs that a panel meets before the next panel

// Rows of x in digits: of each panel [inputs / 64][tiles][16][64], rows of tiles in the order of
// (row, digit).
struct Digits {
  int8_t* bytes;
  float* units;  // [rows]: what the lowest digit counts
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
}

// One panel's digits times the group of outputs from ``first``: sums[tiles][16][16].
template <class T, int kTiles>
void multiply_panel(const Product<T>& p, const int8_t* digits, index_t padded, index_t first,
                    int32_t* sums) {
  // How many tiles ahead memory is asked for, and into which cache: with many rows the first level
  // is the digits'.
  constexpr index_t kAhead = kTiles < 3 ? 8 : 24;
  constexpr _mm_hint kCache = kTiles < 3 ? _MM_HINT_T0 : _MM_HINT_T1;
  const index_t stride = p.width(first) * 4;
  const int8_t *weight = p.weight + first * p.inputs, *end = p.weight + p.outputs * p.inputs;
  alignas(64) int8_t last[kTileBytes];
  _tile_zero(0);
  if (kTiles > 1) _tile_zero(1);
  if (kTiles > 2) _tile_zero(2);
  if (kTiles > 3) _tile_zero(3);
  if (kTiles > 4) _tile_zero(4);
  if (kTiles > 5) _tile_zero(5);
  for (index_t k = 0; k < padded; k += kInputs, weight += 16 * stride) {
    index_t apart = stride;
    // What lies behind a tile's own bytes meets digits of zero, or outputs that are left out.
    if (weight + 15 * stride + 64 <= end) {
      for (index_t line = 0; line < kTileBytes; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(weight) + kAhead * kTileBytes + line, kCache);
      _tile_loadd(7, weight, apart);
    } else {
      std::memset(last, 0, sizeof last);
      for (index_t at = 0; at < 16 && weight + at * stride < end; ++at)
        std::memcpy(last + at * 64, weight + at * stride, stride);
      _tile_loadd(7, last, 64);
    }
#define GS_TILE(i)                                 \
  if (kTiles > i) {                                \
    _tile_loadd(6, digits + i * kTileBytes, 64);   \
    _tile_dpbssd(i, 6, 7);                         \
  }
    GS_TILE(0) GS_TILE(1) GS_TILE(2) GS_TILE(3) GS_TILE(4) GS_TILE(5)
#undef GS_TILE
    digits += kTiles * kTileBytes;
  }
  _tile_stored(0, sums, 64);
  if (kTiles > 1) _tile_stored(1, sums + 256, 64);
  if (kTiles > 2) _tile_stored(2, sums + 512, 64);
  if (kTiles > 3) _tile_stored(3, sums + 768, 64);
  if (kTiles > 4) _tile_stored(4, sums + 1024, 64);
  if (kTiles > 5) _tile_stored(5, sums + 1280, 64);
}

template <class T>
void finish_panel(const Product<T>& p, const Digits& digits, index_t panel, index_t first,
                  const int32_t* sums) {
  for (index_t i = 0; i < digits.panel_rows(panel); ++i, sums += kDigits * 16) {
    const index_t row = panel * kPanel + i;
    __m512 d0 = _mm512_cvtepi32_ps(_mm512_load_si512(sums));
    __m512 d1 = _mm512_cvtepi32_ps(_mm512_load_si512(sums + 16));
    __m512 d2 = _mm512_cvtepi32_ps(_mm512_load_si512(sums + 32));
    __m512 sum = _mm512_fmadd_ps(d2, _mm512_set1_ps(256), d1);
    sum = _mm512_fmadd_ps(sum, _mm512_set1_ps(256), d0);
    finish(p, row, first, _mm512_mul_ps(sum, _mm512_set1_ps(digits.units[row])));
  }
}

// Outputs ``begin`` to ``end`` of all rows of ``digits``.
template <class T>
void multiply_digits(const Product<T>& p, const Digits& digits, index_t begin, index_t end) {
  alignas(64) int32_t sums[kPanel * kDigits * kOutputs];
  gs::TileConfig config;
  if (digits.rows * kDigits < 16) config.rows[0] = config.rows[6] = digits.rows * kDigits;
  _tile_loadconfig(&config);
  for (index_t block = begin; block < end; block += kBlock * kOutputs)
    for (index_t panel = 0; panel * kPanel < digits.rows; ++panel)
      for (index_t first = block; first < std::min(end, block + kBlock * kOutputs);
           first += kOutputs) {
        const int8_t* bytes = digits.panel(panel);
        switch (digits.tiles(panel)) {
          case 1: multiply_panel<T, 1>(p, bytes, digits.padded, first, sums); break;
          case 2: multiply_panel<T, 2>(p, bytes, digits.padded, first, sums); break;
          case 3: multiply_panel<T, 3>(p, bytes, digits.padded, first, sums); break;
          case 4: multiply_panel<T, 4>(p, bytes, digits.padded, first, sums); break;
          case 5: multiply_panel<T, 5>(p, bytes, digits.padded, first, sums); break;
          case 6: multiply_panel<T, 6>(p, bytes, digits.padded, first, sums); break;
        }
        finish_panel(p, digits, panel, first, sums);
      }
  _tile_release();
}

template <class T>
void multiply_by_digits(Product<T> p, int threads) {
  const index_t all = p.rows, padded = gs::round_up(p.inputs, kInputs);
  const index_t most = gs::round_up(std::min(all, kMostRows), kPanel);
  // A little more than is written: whole tiles are read.
  int8_t* bytes = gs::scratch<int8_t, 40>(most * kDigits * padded);
  float* units = gs::scratch<float, 41>(most);
  for (index_t done = 0; done < all; done += kMostRows) {
    p.rows = std::min(kMostRows, all - done);
    const Digits digits{bytes, units, padded, p.rows};
    gs::share_rows(threads, p.rows, p.inputs, [&](index_t first, index_t last) {
      for (index_t row = first; row < last; ++row) write_digits(p, digits, row);
    });
    share_outputs(p.outputs, threads,
                  [&](index_t begin, index_t end) { multiply_digits(p, digits, begin, end); });
    p.x += p.rows * p.x_stride;
    p.out += p.rows * p.outputs;
    if (p.total) p.total += p.rows * p.outputs;
  }
}

}  // namespace
#endif
