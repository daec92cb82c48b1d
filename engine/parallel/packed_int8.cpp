// Products with int8 weights, each row of which has a scale; called by engine/parallel/int8.py.
//
// With AMX or VNNI rows are split into digits (int8_digits.h), and for many rows of bfloat16 weights
// are widened (int8_widened.h); elsewhere weights are widened to float32 in registers. Rows may be
// rounded to int8, everywhere alike.

#include "few_floats.h"
#include "int8_tiles.h"
#include "int8_vectors.h"
#include "int8_widened_tiles.h"

namespace int8 {
namespace {

enum class Way { kFloats, kVectors, kTiles };

// Rows of bfloat16 from which on their digits are slower than a widened weight: three of them, as
// measured; two may not be, which was not.
constexpr index_t kManyForTiles = 65, kManyForVectors = 57;

constexpr int kVectors = kOutputs / gs::kWidth<float>;  // that hold one input of a group
// Rows that share a widened weight: their sums take half of the registers at most.
constexpr int kTogether = std::min(8, gs::kNumRegisters / 2 / kVectors);

// Numbers of ``row``, kept ``apart``, as floats; rounded to -127 to 127 where that is asked, as
// write_digits rounds them. What one of them stands for.
template <class T>
float lay_out_floats(const Product<T>& p, index_t row, float* to, index_t apart) {
  const T* x = p.x + row * p.x_stride;
  for (index_t k = 0; k < p.inputs; ++k) to[k * apart] = gs::in_compute(x[k]);
  if (p.digits != 1) return 1;
  float most = 0;
  for (index_t k = 0; k < p.inputs; ++k) most = std::max(most, std::abs(to[k * apart]));
  const float unit = std::max(most, kLeastAmount) / 127, factor = 1 / unit;
  for (index_t k = 0; k < p.inputs; ++k) to[k * apart] = std::nearbyint(to[k * apart] * factor);
  return unit;
}

// ``x[inputs][kRows]`` times the group of outputs from ``first``: sums[kRows][16].
template <int kRows, class T>
void multiply_group(const Product<T>& p, const float* x, index_t first, float* sums) {
  using V = gs::Vec<float>;
  using I = gs::Lanes<float>::I;
  V found[kRows][kVectors] = {};
  const index_t stride = p.width(first) * 4;
  const int8_t* weight = p.group(first);
  alignas(64) int8_t narrow[kOutputs * 4] = {};
  for (index_t k = 0; k < p.inputs; k += 4, weight += stride) {
    const int8_t* four = weight;
    if (stride < kOutputs * 4) four = static_cast<int8_t*>(std::memcpy(narrow, weight, stride));
    for (int v = 0; v < kVectors; ++v) {
      I raw;
      std::memcpy(&raw, four + v * gs::kVectorBytes, sizeof raw);
      for (int j = 0; j < 4; ++j) {
        // On little-endian machines, which all of ours are, the first input is the lowest byte.
        V one = __builtin_convertvector((raw << (24 - 8 * j)) >> 24, V);
        for (int r = 0; r < kRows; ++r) found[r][v] += one * x[(k + j) * kRows + r];
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v)
      gs::store(sums + r * kOutputs + v * gs::kWidth<float>, found[r][v]);
}

inline void narrow(float x, float* to) { *to = x; }
inline void narrow(float x, gs::Half* to) { *to = gs::Half(x); }
inline void narrow(float x, gs::BFloat16* to) {
  const uint32_t bits = gs::bits_as<uint32_t>(x);
  to->bits = x == x ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : 0x7fc0;
}

// Outputs ``begin`` to ``end`` of ``kRows`` rows from ``row``; ``x`` as multiply_group reads it, in units
// of ``units``.
template <int kRows, class T>
void multiply_rows(const Product<T>& p, const float* x, const float* units, index_t row,
                   index_t begin, index_t end) {
  alignas(64) float sums[kRows * kOutputs];
  for (index_t first = begin; first < end; first += kOutputs) {
    multiply_group<kRows>(p, x, first, sums);
    for (int r = 0; r < kRows; ++r)
      for (index_t i = 0; i < p.width(first); ++i) {
        const index_t to = (row + r) * p.out_stride + first + i;
        float sum = sums[r * kOutputs + i] * units[r] * p.scales[first + i];
        if (p.bias) sum += gs::in_compute(p.bias[first + i]);
        if (p.total) sum += gs::in_compute(p.total[to]);
        narrow(sum, p.out + to);
      }
  }
}

template <int kRows, class T>
void multiply_some(const Product<T>& p, index_t row, index_t rows, int threads) {
  if constexpr (kRows > 1)
    if (rows < kRows) return multiply_some<kRows - 1>(p, row, rows, threads);
  float* x = gs::scratch<float, 42>(p.inputs * kRows);
  float units[kRows];
  for (index_t r = 0; r < kRows; ++r) units[r] = lay_out_floats(p, row + r, x + r, kRows);
  share_outputs(p.outputs, threads, [&](index_t begin, index_t end) {
    multiply_rows<kRows>(p, x, units, row, begin, end);
  });
}

template <class T>
void multiply_by_floats(const Product<T>& p, int threads) {
  for (index_t row = 0; row < p.rows; row += kTogether)
    multiply_some<kTogether>(p, row, std::min<index_t>(kTogether, p.rows - row), threads);
}

Way best_way() {
#ifdef GS_HAS_AMX_INT8
  if (gs::can_use_amx()) return Way::kTiles;
#endif
#ifdef GS_HAS_VNNI
  return Way::kVectors;
#endif
  return Way::kFloats;
}

#ifdef GS_HAS_VNNI
template <class T>
void multiply_by_digits(Product<T> p, Way way, int threads) {
  const index_t all = p.rows;
  Digits digits = room_for(std::min(all, kMostRows), p.inputs, p.digits, way == Way::kVectors);
  for (index_t done = 0; done < all; done += kMostRows) {
    p.rows = digits.rows = std::min(kMostRows, all - done);
    gs::share_rows(threads, p.rows, p.inputs, [&](index_t first, index_t last) {
      write_rows(p, digits, first, last);
    });
    share_outputs(p.outputs, threads, [&](index_t begin, index_t end) {
#ifdef GS_HAS_AMX_INT8
      if (way == Way::kTiles) return multiply_tiles(p, digits, begin, end);
#endif
      multiply_vectors(p, digits, begin, end);
    });
    p.x += p.rows * p.x_stride;
    p.out += p.rows * p.out_stride;
    if (p.total) p.total += p.rows * p.out_stride;
  }
}

template <class T>
void multiply_by_bytes(const Product<T>& p, Way way, int threads) {
  [[maybe_unused]] const bool is_whole = p.digits > 1;  // what widening keeps, too
  if constexpr (std::is_same_v<T, gs::BFloat16>) {
#ifdef GS_HAS_AMX_INT8
    if (is_whole && way == Way::kTiles && p.rows >= kManyForTiles) return multiply_widened(p, threads);
#endif
#ifdef GS_HAS_WIDENED
    // Where products of bfloat16 are slow (see widens()) digits of any number of rows are faster.
    if (is_whole && way == Way::kVectors && p.rows >= kManyForVectors && !widens())
      return multiply_by_widening(p, threads);
#endif
  }
  multiply_by_digits(p, way, threads);
}
#endif

}  // namespace
}  // namespace int8

using gs::index_t;
using int8::Way;

extern "C" {

// The best way of this processor, and those below it go too: any number of rows by tiles (2) or by
// vectors of bytes (1), a few by floats (0).
int gs_int8_way() { return int(int8::best_way()); }

// ``kind``: float32 (0), bfloat16 (1), float16 (2). Inputs are a multiple of 4; ``pitch``: those of the
// whole weight. ``digits`` of rows: 1 to 3, or 0 for those that keep their numbers whole (by floats all
// but 1 do). Not 0: there is no memory for them.
int gs_multiply_int8(int kind, int way, const int8_t* weight, const float* scales,
                      const void* x, const void* bias, const void* total, void* out,
                      index_t pitch, index_t outputs, index_t inputs, index_t rows,
                      index_t x_stride, int digits, int threads) {
  auto run = [&](auto one) {
    using T = decltype(one);
    const int8::Product<T> p{weight,
                       scales,
                       static_cast<const T*>(x),
                       static_cast<const T*>(bias),
                       static_cast<const T*>(total),
                       static_cast<T*>(out),
                       outputs,
                       inputs,
                       rows,
                       x_stride,
                       outputs,
                       pitch,
                       digits ? digits : int8::kWhole<T>};
#ifdef GS_HAS_VNNI
    if (way != int(Way::kFloats)) return int8::multiply_by_bytes(p, Way(way), threads);
#endif
    int8::multiply_by_floats(p, threads);
  };
  try {
    switch (kind) {
      case 0: run(float()); break;
      case 1: run(gs::BFloat16()); break;
      case 2: run(gs::Half()); break;
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

}  // extern "C"
