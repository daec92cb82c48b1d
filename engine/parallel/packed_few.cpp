// Products of few rows with a weight as oneDNN packs it; called by engine/parallel/few_rows.py, which
// checks the layout by oneDNN's own answer.
//
// The layout: blocks of ``block`` outputs. Of bfloat16 each is [inputs / 2][block][2], so that 16
// outputs of 32 inputs are one tile of AMX as it lies, and x is the other. Of float32 it is
// [inputs][block]: vectors of outputs, times one element of x. A weight is read once and in its order.

#include "../kernels/cpu/prefill_amx.h"
#include "../kernels/cpu/threads.h"

namespace {

// Outputs at a time.
template <class T>
constexpr int64_t kWidth = 32;
template <>
constexpr int64_t kWidth<float> = 64;

template <class T>
struct Product {
  const T* weight;
  const T* x;      // [rows, inputs], rows apart by x_stride
  const T* bias;   // [outputs] or null
  const T* total;  // [rows, outputs] added to the product, or null
  T* out;          // [rows, outputs]
  int64_t block, outputs, inputs, rows, x_stride;
};

}  // namespace

#ifdef GS_HAS_AMX
namespace {

// How many tile steps ahead memory is asked for: about what arrives while eight are multiplied.
constexpr int64_t kAhead = 8;
constexpr int64_t kPanel = 16;  // rows of a tile
using Narrow = Product<uint16_t>;
constexpr int64_t kMostRows = 2 * kPanel, kColumns = kWidth<uint16_t>;

__m512 widened(const uint16_t* from) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

void finish(const Narrow& p, const float* sums, int64_t first) {
  for (int64_t row = 0; row < p.rows; ++row)
    for (int64_t column = 0; column < kColumns; column += 16) {
      int64_t to = row * p.outputs + first + column;
      __m512 sum = _mm512_load_ps(sums + row * kColumns + column);
      if (p.bias) sum = _mm512_add_ps(sum, widened(p.bias + first + column));
      if (p.total) sum = _mm512_add_ps(sum, widened(p.total + to));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p.out + to),
                          reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sum)));
    }
}

// Outputs ``first`` to ``first + kColumns``: tiles 0 to 3 sum, 4 and 5 hold x, 6 and 7 the weight.
template <bool kIsTwoPanels>
void columns(const Narrow& p, int64_t first) {
  alignas(64) float sums[kMostRows * kColumns];
  const uint16_t* weight = p.weight + first / p.block * p.block * p.inputs + first % p.block * 2;
  const int64_t pairs = p.block * 4, step = p.block * 32, x_bytes = p.x_stride * 2;
  _tile_zero(0);
  _tile_zero(1);
  if (kIsTwoPanels) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < p.inputs; k += 32, weight += step) {
    _tile_loadd(4, p.x + k, x_bytes);
    _tile_loadd(6, weight, pairs);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, weight + 32, pairs);
    _tile_dpbf16ps(1, 4, 7);
    if (kIsTwoPanels) {
      _tile_loadd(5, p.x + kPanel * p.x_stride + k, x_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    const char* ahead = reinterpret_cast<const char*>(weight + kAhead * step);
    for (int64_t pair = 0; pair < 16; ++pair) {
      _mm_prefetch(ahead + pair * pairs, _MM_HINT_T0);
      _mm_prefetch(ahead + pair * pairs + 64, _MM_HINT_T0);
    }
  }
  _tile_stored(0, sums, kColumns * 4);
  _tile_stored(1, sums + 16, kColumns * 4);
  if (kIsTwoPanels) {
    _tile_stored(2, sums + kPanel * kColumns, kColumns * 4);
    _tile_stored(3, sums + kPanel * kColumns + 16, kColumns * 4);
  }
  finish(p, sums, first);
}

void multiply(const Narrow& p, int64_t begin, int64_t end) {
  gs::TileConfig config;
  const bool is_two = p.rows > kPanel;
  const uint8_t low = is_two ? kPanel : p.rows, high = is_two ? p.rows - kPanel : kPanel;
  config.rows[0] = config.rows[1] = config.rows[4] = low;
  config.rows[2] = config.rows[3] = config.rows[5] = high;
  _tile_loadconfig(&config);
  for (int64_t first = begin; first < end; first += kColumns)
    is_two ? columns<true>(p, first) : columns<false>(p, first);
  _tile_release();
}

}  // namespace
#endif

#ifdef __AVX512F__
namespace {

using Wide = Product<float>;

// Outputs ``first`` to ``first + kWidth<float>``, a whole block's width in four vectors.
template <int kRows>
void columns(const Wide& p, int64_t first) {
  constexpr int kVectors = 4, kAhead = 16;  // inputs ahead that memory is asked for
  __m512 sums[kRows][kVectors] = {};
  const float* weight = p.weight + first / p.block * p.block * p.inputs + first % p.block;
  for (int64_t k = 0; k < p.inputs; ++k, weight += p.block) {
    __m512 outputs[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      outputs[v] = _mm512_loadu_ps(weight + 16 * v);
      _mm_prefetch(reinterpret_cast<const char*>(weight + kAhead * p.block + 16 * v), _MM_HINT_T0);
    }
    for (int r = 0; r < kRows; ++r) {
      const __m512 one = _mm512_set1_ps(p.x[r * p.x_stride + k]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_fmadd_ps(one, outputs[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t column = first + 16 * v, to = r * p.outputs + column;
      __m512 sum = sums[r][v];
      if (p.bias) sum = _mm512_add_ps(sum, _mm512_loadu_ps(p.bias + column));
      if (p.total) sum = _mm512_add_ps(sum, _mm512_loadu_ps(p.total + to));
      _mm512_storeu_ps(p.out + to, sum);
    }
}

template <int kRows>
void multiply_rows(const Wide& p, int64_t begin, int64_t end) {
  for (int64_t first = begin; first < end; first += kWidth<float>) columns<kRows>(p, first);
}

void multiply(const Wide& p, int64_t begin, int64_t end) {
  switch (p.rows) {
    case 1: return multiply_rows<1>(p, begin, end);
    case 2: return multiply_rows<2>(p, begin, end);
    case 3: return multiply_rows<3>(p, begin, end);
    case 4: return multiply_rows<4>(p, begin, end);
    case 5: return multiply_rows<5>(p, begin, end);
    case 6: return multiply_rows<6>(p, begin, end);
  }
}

}  // namespace
#endif

namespace {

template <class T>
void share(const Product<T>& p, int threads) {
  const int64_t blocks = p.outputs / kWidth<T>;
  const int64_t each = gs::ceil_div(blocks, int64_t(threads > 1 ? 4 * threads : 1));
  gs::share(threads, gs::ceil_div(blocks, each), [&](int64_t i) {
    multiply(p, i * each * kWidth<T>, std::min(p.outputs, (i + 1) * each * kWidth<T>));
  });
}

}  // namespace

extern "C" {

// Whether this processor has the instructions, for float32 (0) and bfloat16 (1).
int gs_can_multiply_few(int is_narrow) {
#ifdef GS_HAS_AMX
  if (is_narrow) return gs::can_use_amx();
#endif
#ifdef __AVX512F__
  if (!is_narrow) return 1;
#endif
  return 0;
}

// 1 to 6 rows of float32, 1 to 32 of bfloat16; outputs and block are multiples of kWidth, inputs of
// bfloat16 of 32.
void gs_multiply_few(int is_narrow, const void* weight, const void* x, const void* bias,
                     const void* total, void* out, int64_t block, int64_t outputs, int64_t inputs,
                     int64_t rows, int64_t x_stride, int threads) {
  auto run = [&](auto kind) {
    using T = decltype(kind);
    share(Product<T>{static_cast<const T*>(weight), static_cast<const T*>(x),
                     static_cast<const T*>(bias), static_cast<const T*>(total),
                     static_cast<T*>(out), block, outputs, inputs, rows, x_stride},
          threads);
  };
#ifdef GS_HAS_AMX
  if (is_narrow) run(uint16_t());
#endif
#ifdef __AVX512F__
  if (!is_narrow) run(float());
#endif
}

}  // extern "C"
