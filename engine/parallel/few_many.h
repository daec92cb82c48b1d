// Any number of rows in vectors of floats. Rows are laid out in panels; a piece of the weight, widened
// where it is bfloat16, is in the first cache while it meets them, and they stay in the second.
#pragma once

#include "few_floats.h"

#ifdef __AVX512F__
namespace {

constexpr int64_t kPanel14 = 14;        // rows; times two vectors of outputs are the sums in registers
constexpr int64_t kPieceInputs = 192;   // 24 KiB of floats of 32 outputs, in the first cache
constexpr int64_t kGroupOutputs = 128;  // outputs between two looks at the rows
constexpr int64_t kGroupRows = 756;     // rows that are laid out at a time, and meet a piece

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

// A piece of the weight: some inputs, from ``k`` on, of 32 outputs.
struct Piece32 {
  int64_t output, k, inputs;
};
// Where a piece lies as floats: a row of its 32 outputs for each input, ``stride`` apart.
struct Laid {
  const float* at;
  int64_t stride;
};

// ``lay_out`` finds a piece as it is, or makes it in ``space`` [inputs][32]; and ``line`` says where the
// ``i``th of the lines of memory is of which it is made: of a packed weight,
struct PackedWeight {
  template <class T>
  static const T* line(const Product<T>& p, const Piece32& piece, int64_t i) {
    constexpr int64_t kTogether = 4 / sizeof(T);
    return p.column(piece.output) + (piece.k + i / 2 * kTogether) * p.block + i % 2 * 16 * kTogether;
  }
  static Laid lay_out(const Wide& p, const Piece32& piece, float*) {
    return {line(p, piece, 0), p.block};
  }
#ifdef GS_HAS_BF16
  static Laid lay_out(const Narrow& p, const Piece32& piece, float* space) {
    const uint16_t* weight = line(p, piece, 0);
    float* to = space;
    for (int64_t k = 0; k < piece.inputs; k += 2, weight += 2 * p.block, to += 64)
      for (int v = 0; v < 2; ++v)
        split_pair(_mm512_loadu_si512(weight + 32 * v), to + 16 * v, to + 32 + 16 * v);
    return {space, 32};
  }
#endif
};
// and of a plain one, of which 16 outputs of 64 bytes of inputs are turned at a time.
struct PlainWeight {
  template <class T>
  static const T* line(const Product<T>& p, const Piece32& piece, int64_t i) {
    return p.weight + (piece.output + i % 32) * p.inputs + piece.k + i / 32 * int64_t(64 / sizeof(T));
  }
  template <class T>
  static Laid lay_out(const Product<T>& p, const Piece32& piece, float* space) {
    constexpr int64_t kStep = 64 / sizeof(T);
    gs::Vec<float> turned[16];
    float* to = space;
    for (int64_t k = 0; k < piece.inputs; k += kStep, to += kStep * 32)
      for (int v = 0; v < 2; ++v) {
        const T* weight = p.weight + (piece.output + 16 * v) * p.inputs + piece.k + k;
        for (int i = 0; i < 16; ++i)
          turned[i] = gs::load(reinterpret_cast<const float*>(weight + i * p.inputs));
        gs::transpose<float>(turned);
        for (int i = 0; i < 16; ++i) put(p, turned[i], to + 16 * v, i);
      }
    return {space, 32};
  }

 private:
  static void put(const Wide&, gs::Vec<float> outputs, float* to, int64_t i) {
    gs::store(to + i * 32, outputs);
  }
#ifdef GS_HAS_BF16
  static void put(const Narrow&, gs::Vec<float> pairs, float* to, int64_t i) {
    split_pair((__m512i)pairs, to + i * 64, to + i * 64 + 32);
  }
#endif
};

// ``kRows`` rows of a panel at ``x`` times ``inputs`` inputs of a piece, added to ``before`` [14][32]
// (null: to zeros); ``put(r, v, sum)`` gets each vector of sums.
template <int kRows, class Put>
void add_piece(const float* x, Laid piece, int64_t inputs, const float* before, const Put& put) {
  Sums<kRows, 2> found;
  before ? found.load(before) : found.clear();
  for (int64_t k = 0; k < inputs; ++k, x += kPanel14, piece.at += piece.stride) {
    const __m512 a = _mm512_loadu_ps(piece.at), b = _mm512_loadu_ps(piece.at + 16);
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      const __m512 one = _mm512_set1_ps(x[r]);
      found.at[r][0] = _mm512_fmadd_ps(one, a, found.at[r][0]);
      found.at[r][1] = _mm512_fmadd_ps(one, b, found.at[r][1]);
    }
  }
  found.each(put);
}
template <int kRows, class Put>
void add_piece_up_to(int64_t rows, const float* x, const Laid& piece, int64_t inputs,
                     const float* before, const Put& put) {
  if constexpr (kRows > 1)
    if (rows < kRows) return add_piece_up_to<kRows - 1>(rows, x, piece, inputs, before, put);
  add_piece<kRows>(x, piece, inputs, before, put);
}

// One panel meets a piece; ``sums`` [14][32] go from one piece of these outputs to the next.
template <class T>
void meet_panel(const Product<T>& p, const float* panels, int64_t panel, const Piece32& piece,
                const Laid& laid, float* sums) {
  const int64_t row = panel * kPanel14, rows = std::min(kPanel14, p.rows - row);
  const float *x = panels + (panel * p.inputs + piece.k) * kPanel14, *before = piece.k ? sums : nullptr;
  if (piece.k + piece.inputs < p.inputs)
    return add_piece_up_to<kPanel14>(rows, x, laid, piece.inputs, before, [=](int r, int v, __m512 sum) {
      _mm512_store_ps(sums + r * 32 + 16 * v, sum);
    });
  add_piece_up_to<kPanel14>(rows, x, laid, piece.inputs, before, [&](int r, int v, __m512 sum) {
    finish(p, row + r, piece.output + 16 * v, sum);
  });
}

// Outputs ``begin`` to ``end``, at most kGroupOutputs, of all rows, which are in ``panels``.
template <class Weight, class T>
void multiply_group(const Product<T>& p, const float* panels, int64_t begin, int64_t end) {
  const int64_t count = panels_of(p), wide = (end - begin) / 32;
  const int64_t pieces = wide * gs::ceil_div(p.inputs, kPieceInputs);
  float* sums = gs::scratch<float, 52>(wide * count * kPanel14 * 32);
  float* space = gs::scratch<float, 53>(kPieceInputs * 32);
  auto piece_at = [&](int64_t i) {
    const int64_t k = i / wide * kPieceInputs;
    return Piece32{begin + i % wide * 32, k, std::min(kPieceInputs, p.inputs - k)};
  };
  for (int64_t i = 0; i < pieces; ++i) {
    const Piece32 piece = piece_at(i), next = piece_at(std::min(i + 1, pieces - 1));
    const Laid laid = Weight::lay_out(p, piece, space);
    const int64_t lines = next.inputs * 32 * int64_t(sizeof(T)) / 64, each = gs::ceil_div(lines, count);
    for (int64_t panel = 0; panel < count; ++panel) {
      // The next piece is asked for, into the second cache, while this one is multiplied.
      for (int64_t at = panel * each; at < std::min(lines, (panel + 1) * each); ++at)
        _mm_prefetch(reinterpret_cast<const char*>(Weight::line(p, next, at)), _MM_HINT_T1);
      meet_panel(p, panels, panel, piece, laid, sums + (i % wide * count + panel) * kPanel14 * 32);
    }
  }
}

}  // namespace
#endif
