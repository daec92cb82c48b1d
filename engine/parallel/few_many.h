// Any number of rows in vectors of floats: pieces of the weight are laid out anew for many rows at a
// time, bfloat16 widened, and all that a piece meets stays in the second cache.
#pragma once

#include "few_floats.h"

#ifdef __AVX512F__
namespace {

constexpr int64_t kPanel14 = 14;        // rows; times two vectors of outputs are the sums in registers
constexpr int64_t kPieceInputs = 192;   // 24 KiB of 32 widened outputs, in the first cache
constexpr int64_t kGroupOutputs = 128;  // outputs between two looks at the rows
constexpr int64_t kGroupPanels = 36;    // panels of rows that a widened piece meets

// ``count`` numbers, at most 16, and zeros.
template <class T>
__m512 widened_some(const T* from, int64_t count) {
  if (count == 16) return widened(from);
  T some[16] = {};
  std::memcpy(some, from, count * sizeof(T));
  return widened(some);
}

template <class T>
int64_t panels_of(const Product<T>& p) { return gs::ceil_div(p.rows, kPanel14); }

// Rows in panels of 14, [panels][inputs][14] floats; rows that are not there are zeros.
template <class T>
void lay_out_panel(const Product<T>& p, int64_t panel, float* panels) {
  float* to = panels + panel * p.inputs * kPanel14;
  const int64_t first = panel * kPanel14, rows = std::min(kPanel14, p.rows - first);
  const T* x = p.x + first * p.x_stride;
  gs::Vec<float> turned[16];
  for (int64_t k = 0; k < p.inputs; k += 16, to += 16 * kPanel14) {
    const int64_t count = std::min<int64_t>(16, p.inputs - k);
    for (int64_t r = 0; r < 16; ++r)
      turned[r] = r < rows ? (gs::Vec<float>)widened_some(x + r * p.x_stride + k, count)
                           : gs::Vec<float>{};
    gs::transpose<float>(turned);
    for (int64_t i = 0; i < count; ++i)
      _mm512_mask_storeu_ps(to + i * kPanel14, (1 << kPanel14) - 1, (__m512)turned[i]);
  }
}

#ifdef GS_HAS_BF16
// 16 pairs of inputs of 16 outputs each, apart: those of even and of odd places.
inline void split_pair(__m512i both, float* even, float* odd) {
  const __m512i upper = _mm512_and_si512(both, _mm512_set1_epi32(int(0xffff0000u)));
  _mm512_store_ps(even, _mm512_castsi512_ps(_mm512_slli_epi32(both, 16)));
  _mm512_store_ps(odd, _mm512_castsi512_ps(upper));
}
#endif

// Inputs ``begin`` to ``end`` of 32 outputs from ``first`` as [inputs][32] floats: of a packed weight,
struct PackedWeight {
  static void widen(const Wide& p, int64_t first, int64_t begin, int64_t end, float* wide) {
    const float* weight = p.column(first) + begin * p.block;
    for (int64_t k = begin; k < end; ++k, weight += p.block, wide += 32)
      for (int v = 0; v < 2; ++v) _mm512_store_ps(wide + 16 * v, widened(weight + 16 * v));
  }
#ifdef GS_HAS_BF16
  static void widen(const Narrow& p, int64_t first, int64_t begin, int64_t end, float* wide) {
    const uint16_t* weight = p.column(first) + begin * p.block;
    for (int64_t k = begin; k < end; k += 2, weight += 2 * p.block, wide += 64)
      for (int v = 0; v < 2; ++v)
        split_pair(_mm512_loadu_si512(weight + 32 * v), wide + 16 * v, wide + 32 + 16 * v);
  }
#endif
};
// and of a plain one, of which 16 outputs of 64 bytes of inputs are turned at a time.
struct PlainWeight {
  template <class T>
  static void widen(const Product<T>& p, int64_t first, int64_t begin, int64_t end, float* wide) {
    constexpr int64_t kStep = 64 / sizeof(T);
    gs::Vec<float> turned[16];
    for (int64_t k = begin; k < end; k += kStep, wide += kStep * 32)
      for (int v = 0; v < 2; ++v) {
        const T* weight = p.weight + (first + 16 * v) * p.inputs + k;
        for (int i = 0; i < 16; ++i)
          turned[i] = gs::load(reinterpret_cast<const float*>(weight + i * p.inputs));
        gs::transpose<float>(turned);
        for (int i = 0; i < 16; ++i) put(p, turned[i], wide + 16 * v, i);
      }
  }

 private:
  static void put(const Wide&, gs::Vec<float> outputs, float* wide, int64_t i) {
    gs::store(wide + i * 32, outputs);
  }
#ifdef GS_HAS_BF16
  static void put(const Narrow&, gs::Vec<float> pairs, float* wide, int64_t i) {
    split_pair((__m512i)pairs, wide + i * 64, wide + i * 64 + 32);
  }
#endif
};

// ``kRows`` rows of a panel times a widened piece of ``count`` inputs, added to sums[kRows][32].
template <int kRows>
void add_piece(const float* x, const float* wide, int64_t count, bool is_first, float* sums) {
  __m512 found[kRows][2] = {};
  if (!is_first)
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < 2; ++v) found[r][v] = _mm512_load_ps(sums + r * 32 + 16 * v);
  for (int64_t k = 0; k < count; ++k, x += kPanel14, wide += 32) {
    const __m512 a = _mm512_load_ps(wide), b = _mm512_load_ps(wide + 16);
    for (int r = 0; r < kRows; ++r) {
      const __m512 one = _mm512_set1_ps(x[r]);
      found[r][0] = _mm512_fmadd_ps(one, a, found[r][0]);
      found[r][1] = _mm512_fmadd_ps(one, b, found[r][1]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < 2; ++v) _mm512_store_ps(sums + r * 32 + 16 * v, found[r][v]);
}
template <int kRows>
void add_piece_up_to(int64_t rows, const float* x, const float* wide, int64_t count, bool is_first,
                     float* sums) {
  if constexpr (kRows > 1)
    if (rows < kRows) return add_piece_up_to<kRows - 1>(rows, x, wide, count, is_first, sums);
  add_piece<kRows>(x, wide, count, is_first, sums);
}

// Outputs ``begin`` to ``end``, at most kGroupOutputs, of panels ``first`` to ``last``.
template <class Weight, class T>
void multiply_group(const Product<T>& p, const float* panels, int64_t first, int64_t last,
                           int64_t begin, int64_t end) {
  const int64_t most = kGroupPanels * kPanel14 * 32;  // sums of 32 outputs
  float* sums = gs::scratch<float, 52>(kGroupOutputs / 32 * most);
  float* wide = gs::scratch<float, 53>(kPieceInputs * 32);
  auto rows_of = [&](int64_t panel) { return std::min(kPanel14, p.rows - panel * kPanel14); };
  for (int64_t k = 0; k < p.inputs; k += kPieceInputs) {
    const int64_t count = std::min(kPieceInputs, p.inputs - k);
    for (int64_t output = begin; output < end; output += 32) {
      Weight::widen(p, output, k, k + count, wide);
      for (int64_t panel = first; panel < last; ++panel)
        add_piece_up_to<kPanel14>(
            rows_of(panel), panels + (panel * p.inputs + k) * kPanel14, wide, count, k == 0,
            sums + (output - begin) / 32 * most + (panel - first) * kPanel14 * 32);
    }
  }
  for (int64_t panel = first; panel < last; ++panel)
    for (int64_t r = 0; r < rows_of(panel); ++r)
      for (int64_t output = begin; output < end; output += 16) {
        const float* at = sums + (output - begin) / 32 * most + (output - begin) % 32;
        finish(p, panel * kPanel14 + r, output,
               _mm512_load_ps(at + ((panel - first) * kPanel14 + r) * 32));
      }
}

// Outputs ``begin`` to ``end`` of all rows.
template <class Weight, class T>
void multiply_many(const Product<T>& p, const float* panels, int64_t begin, int64_t end) {
  const int64_t all = panels_of(p);
  for (int64_t panel = 0; panel < all; panel += kGroupPanels)
    for (int64_t output = begin; output < end; output += kGroupOutputs)
      multiply_group<Weight>(p, panels, panel, std::min(all, panel + kGroupPanels), output,
                     std::min(end, output + kGroupOutputs));
}

}  // namespace
#endif
