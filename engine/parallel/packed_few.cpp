// Products of few rows: with a weight as oneDNN packs it, called by engine/parallel/few_rows.py, which
// checks the layout by oneDNN's own answer; or with a plain one, called by engine/parallel/plain.py.

#include "few_plain.h"
#include "few_tiles.h"
#include "few_vectors.h"

namespace {

// ``work(begin, end)`` over outputs, in multiples of ``width``.
template <class Work>
void share_outputs(int64_t outputs, int64_t width, int threads, const Work& work) {
  const int64_t blocks = gs::ceil_div(outputs, width);
  const int64_t each = gs::ceil_div(blocks, int64_t(threads > 1 ? 4 * threads : 1)) * width;
  gs::share(threads, gs::ceil_div(outputs, each),
            [&](int64_t i) { work(i * each, std::min(outputs, (i + 1) * each)); });
}

constexpr int kMostFloats = 6, kMostOfTiles = 32;  // with more oneDNN is as fast

#ifdef GS_HAS_BF16
bool has_tiles() {
#ifdef GS_HAS_AMX
  return gs::can_use_amx();
#else
  return false;
#endif
}
#endif

#ifdef __AVX512F__
template <class T>
void multiply(const Product<T>& p, int64_t begin, int64_t end) {
#ifdef GS_HAS_AMX
  if constexpr (std::is_same_v<T, uint16_t>)
    if (has_tiles()) return multiply_by_tiles(p, begin, end);
#endif
  multiply_by_vectors(p, begin, end);
}
#endif

}  // namespace

extern "C" {

// The most rows that this processor multiplies here, of float32 (0) or bfloat16 (1); 0: none.
int gs_most_few(int is_narrow) {
#ifdef GS_HAS_BF16
  if (is_narrow) return has_tiles() ? kMostOfTiles : kMostRows;
#endif
#ifdef __AVX512F__
  if (!is_narrow) return kMostFloats;
#endif
  return 0;
}

// 1 to gs_most_few rows; outputs and block are multiples of 64, of bfloat16 of 32, as inputs are.
void gs_multiply_few(int is_narrow, const void* weight, const void* x, const void* bias,
                     const void* total, void* out, int64_t block, int64_t outputs, int64_t inputs,
                     int64_t rows, int64_t x_stride, int threads) {
#ifdef __AVX512F__
  auto run = [&](auto kind) {
    using T = decltype(kind);
    const Product<T> p{static_cast<const T*>(weight), static_cast<const T*>(x),
                       static_cast<const T*>(bias), static_cast<const T*>(total),
                       static_cast<T*>(out), block, outputs, inputs, rows, x_stride};
    share_outputs(outputs, std::min(block, kBlock), threads,
                  [&](int64_t begin, int64_t end) { multiply(p, begin, end); });
  };
  if (!is_narrow) return run(float());
#ifdef GS_HAS_BF16
  run(uint16_t());
#endif
#endif
}

// The same for a plain weight of bfloat16 and up to 8 rows; outputs are a multiple of 16, inputs
// of 32.
void gs_multiply_plain(const uint16_t* weight, const uint16_t* x, const uint16_t* bias,
                       uint16_t* out, int64_t outputs, int64_t inputs, int64_t rows,
                       int64_t x_stride, int threads) {
#ifdef GS_HAS_BF16
  const Narrow p{weight, x, bias, nullptr, out, outputs, outputs, inputs, rows, x_stride};
  share_outputs(outputs, 16, threads,
                [&](int64_t begin, int64_t end) { multiply_plain<8>(p, begin, end); });
#endif
}

}  // extern "C"
