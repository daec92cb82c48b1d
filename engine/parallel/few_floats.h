// Rows in vectors of floats: of float32 everywhere, and of bfloat16 on processors whose products of
// bfloat16 are slow (see widens()). A product of two bfloat16 is exact in a float.
#pragma once

#include "few_product.h"

#ifdef __AVX512F__
#include "../kernels/cpu/paged.h"
#ifdef __x86_64__
#include <cpuid.h>
#endif

namespace {

constexpr int64_t kFloatRows = 12;     // times two vectors of outputs are the sums in registers
constexpr int64_t kFloatPiece = 64;   // inputs of a piece that stays in the first cache
constexpr int64_t kBytesAhead = 2048;  // of each stream, asked for ahead where memory is the limit,
                                       // into the first cache (into the second: 2 % slower)
constexpr int64_t kMoreAhead = 1 << 16;  // where arithmetic takes as long: into the second cache

// Rows of floats, ``stride`` apart: not a power of two, or rows would share a few lines of the cache.
struct FloatRows {
  const float* at;
  int64_t stride;
};

inline __m512 one_more(__m512 sum, float x, __m512 outputs) {
  return _mm512_fmadd_ps(_mm512_set1_ps(x), outputs, sum);
}

// Adds inputs ``k`` (of bfloat16 k and k + 1) times kVectors vectors of outputs to all rows' sums.
template <int kRows, int kVectors, int kAll>
inline void add_inputs(const float* weight, const FloatRows& x, int64_t k, int at,
                       Sums<kRows, kAll>& found) {
  __m512 outputs[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) outputs[v] = _mm512_loadu_ps(weight + 16 * v);
#pragma GCC unroll 14
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      found.at[r][at + v] = one_more(found.at[r][at + v], x.at[r * x.stride + k], outputs[v]);
}
template <int kRows, int kVectors, int kAll>
inline void add_inputs(const uint16_t* weight, const FloatRows& x, int64_t k, int at,
                       Sums<kRows, kAll>& found) {
  __m512 even[kVectors], odd[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const __m512i both = _mm512_loadu_si512(weight + 32 * v);
    even[v] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd[v] = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(int(0xffff0000u))));
  }
#pragma GCC unroll 14
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      found.at[r][at + v] = one_more(found.at[r][at + v], x.at[r * x.stride + k], even[v]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      found.at[r][at + v] = one_more(found.at[r][at + v], x.at[r * x.stride + k + 1], odd[v]);
  }
}

// ``kRows`` rows from ``row`` times ``kVectors`` vectors of outputs of each of ``kStreams`` blocks
// from ``first``, over the inputs from ``begin`` to ``end``; ``sums`` go from one piece to the next.
template <int kRows, int kVectors, int kStreams, class T>
void multiply_floats(const Product<T>& p, const FloatRows& x, int64_t row, int64_t first,
                     int64_t begin, int64_t end, float* sums) {
  constexpr int64_t kTogether = 4 / sizeof(T);
  constexpr int kAll = kVectors * kStreams;
  const int64_t step = p.block * kTogether, apart = p.block * p.pitch;
  const T* weight = p.column(first) + begin * p.block;
  constexpr bool kIsRead = kRows <= 2 && kVectors == 4;
  constexpr auto kCache = kIsRead ? _MM_HINT_T0 : _MM_HINT_T1;
  constexpr int64_t kAhead = kIsRead ? kBytesAhead : kMoreAhead;
  // A stream goes on behind the others' blocks; what follows its own block was another's, or is no
  // part of the product.
  const int64_t skipped = ((kStreams - 1) * apart + (p.pitch - p.inputs) * p.block) * sizeof(T);
  const int64_t inputs_ahead = kAhead / int64_t(p.block * sizeof(T));
  const int64_t crossed = (begin + inputs_ahead) / p.inputs;  // ends of blocks
  int64_t ahead = kAhead + crossed * skipped, last = (crossed + 1) * p.inputs - inputs_ahead;
  const FloatRows mine{x.at + row * x.stride, x.stride};
  Sums<kRows, kAll> found;
  begin ? found.load(sums) : found.clear();
  for (int64_t k = begin; k < end; k += kTogether, weight += step) {
    if (k >= last) ahead += skipped, last += p.inputs;
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      if (row == 0)  // the first that meet this piece
        for (int v = 0; v < kVectors; ++v)
          _mm_prefetch(reinterpret_cast<const char*>(weight + s * apart) + ahead + 64 * v, kCache);
      add_inputs<kRows, kVectors>(weight + s * apart, mine, k, s * kVectors, found);
    }
  }
  if (end < p.inputs) return found.store(sums);
  found.each([&](int r, int i, __m512 sum) {
    finish(p, row + r, first + i / kVectors * p.block + i % kVectors * 16, sum);
  });
}

// The same of up to ``kRows`` rows: ``rows``.
template <int kRows, int kVectors, int kStreams, class T>
void multiply_up_to(int64_t rows, const Product<T>& p, const FloatRows& x, int64_t row,
                    int64_t first, int64_t begin, int64_t end, float* sums) {
  if constexpr (kRows > 1)
    if (rows < kRows)
      return multiply_up_to<kRows - 1, kVectors, kStreams>(rows, p, x, row, first, begin, end, sums);
  multiply_floats<kRows, kVectors, kStreams>(p, x, row, first, begin, end, sums);
}

// Outputs ``first`` to ``last`` of a block, two vectors of outputs and a panel of rows at a time,
// while a piece of the weight is in the first cache.
template <class T>
void multiply_block(const Product<T>& p, const FloatRows& x, int64_t first, int64_t last,
                    float* sums) {
  const int64_t panels = gs::ceil_div(p.rows, kFloatRows), rows = gs::ceil_div(p.rows, panels);
  for (int64_t k = 0; k < p.inputs; k += kFloatPiece)
    for (int64_t output = first; output < last; output += 32)
      for (int64_t row = 0; row < p.rows; row += rows)
        multiply_up_to<kFloatRows, 2, 1>(std::min(rows, p.rows - row), p, x, row, output, k,
                                         std::min(p.inputs, k + kFloatPiece),
                                         sums + ((output - first) * p.rows + row * 32));
}

// Outputs ``begin`` to ``end`` of all rows. One or two rows are as fast as memory is read, which
// several streams at once are faster at.
template <class T>
void multiply_by_floats(const Product<T>& p, const FloatRows& x, int64_t begin, int64_t end) {
  constexpr int kRowsOfFour = sizeof(T) == 4 ? 6 : 5;
  float* sums = gs::scratch<float, 50>(p.rows * 64);
  const int64_t together = p.block % 64 ? 32 : 64;
  if (together == 32 || p.rows > kRowsOfFour) {
    for (int64_t first = begin; first < end; first += together)
      multiply_block(p, x, first, std::min(end, first + together), sums);
    return;
  }
  int64_t first = begin;
  if (p.rows == 1 && p.block == 64)
    for (; first + 256 <= end; first += 256)
      multiply_floats<1, 4, 4>(p, x, 0, first, 0, p.inputs, sums);
  if (p.rows <= 2 && p.block == 64)
    for (; first + 128 <= end; first += 128)
      multiply_up_to<2, 4, 2>(p.rows, p, x, 0, first, 0, p.inputs, sums);
  for (; first < end; first += 64)
    multiply_up_to<kRowsOfFour, 4, 1>(p.rows, p, x, 0, first, 0, p.inputs, sums);
}

// The rows of ``p`` in floats, in scratch memory of the thread that asks.
inline FloatRows as_floats(const Wide& p) {
  if (p.rows == 1) return {p.x, p.inputs};
  const int64_t stride = gs::round_up(p.inputs, 16) + 16;
  float* to = gs::scratch<float, 51>(p.rows * stride);
  for (int64_t r = 0; r < p.rows; ++r)
    std::memcpy(to + r * stride, p.x + r * p.x_stride, p.inputs * sizeof(float));
  return {to, stride};
}
#ifdef GS_HAS_BF16
inline FloatRows as_floats(const Narrow& p) {
  const int64_t stride = gs::round_up(p.inputs, 16) + 16;
  float* to = gs::scratch<float, 51>(p.rows * stride);
  for (int64_t r = 0; r < p.rows; ++r)
    for (int64_t k = 0; k < p.inputs; k += 16)
      _mm512_store_ps(to + r * stride + k, widened(p.x + r * p.x_stride + k));
  return {to, stride};
}
#endif

// Whether bfloat16 is multiplied as floats: on a Xeon one instruction for pairs of bfloat16 takes
// longer than the two of floats that it replaces. By the processor's maker and not by its clock, so that
// one machine always gives one answer; others were not tried.
inline bool widens() {
#ifdef GS_WIDENS
  return GS_WIDENS;
#elif defined(__x86_64__)
  static const bool is_intel = [] {
    unsigned highest, b, c, d;
    return __get_cpuid(0, &highest, &b, &c, &d) && b == signature_INTEL_ebx;
  }();
  return is_intel;
#else
  return false;
#endif
}

}  // namespace
#endif
