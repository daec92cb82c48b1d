// Products with a weight as oneDNN packs it, called by engine/parallel/few_rows.py, which checks the
// layout by oneDNN's own answer; or with a plain one, called by engine/parallel/plain.py. And all
// layers of a step in one call, for engine/parallel/native_layers.py.

#include "few_stage.h"

extern "C" {

// The most rows that this processor multiplies here, of float32 (0) or bfloat16 (1); 0: none.
int gs_most_few(int is_narrow) {
#ifdef GS_HAS_BF16
  if (is_narrow) return has_tiles() ? kMostOfTiles : widens() ? kMostWidened : kMostRows;
#endif
#ifdef __AVX512F__
  if (!is_narrow) return kFewFloats;
#endif
  return 0;
}

// Whether any number of rows meets a part of a weight here, of float32 (0) or bfloat16 (1).
int gs_has_parts(int is_narrow) {
#ifdef GS_HAS_BF16
  if (is_narrow) return !has_tiles() && widens();
#endif
#ifdef __AVX512F__
  if (!is_narrow) return 1;
#endif
  return 0;
}

// 1 to gs_most_few rows, or any number where gs_has_parts; outputs and block are multiples of 64, of
// bfloat16 of 32, as inputs are. ``pitch``: the inputs of the whole weight.
void gs_multiply_few(int is_narrow, const void* weight, const void* x, const void* bias,
                     const void* total, void* out, int64_t block, int64_t pitch, int64_t outputs,
                     int64_t inputs, int64_t rows, int64_t x_stride, int threads) {
#ifdef __AVX512F__
  auto run = [&](auto kind) {
    using T = decltype(kind);
    const Product<T> p{static_cast<const T*>(weight), static_cast<const T*>(x),
                       static_cast<const T*>(bias), static_cast<const T*>(total),
                       static_cast<T*>(out), block, outputs, inputs, rows, x_stride, outputs, pitch};
    gs::with_team(threads, [&](gs::Team& team) { multiply(p, team); });
  };
  if (!is_narrow) return run(float());
#ifdef GS_HAS_BF16
  run(uint16_t());
#endif
#endif
}

// The most rows that meet a plain weight here, of float32 (0) or bfloat16 (1); 0: none.
int gs_most_plain(int is_narrow) {
#ifdef GS_HAS_BF16
  if (is_narrow) return widens() ? kMostWidened : kMostPlain;
#endif
#ifdef __AVX512F__
  if (!is_narrow) return kFewFloats;
#endif
  return 0;
}

// The same for a plain weight and up to gs_most_plain rows; outputs are a multiple of 16, inputs
// of 32.
void gs_multiply_plain(int is_narrow, const void* weight, const void* x, const void* bias,
                       void* out, int64_t outputs, int64_t inputs, int64_t rows, int64_t x_stride,
                       int threads) {
#ifdef __AVX512F__
  auto run = [&](auto kind) {
    using T = decltype(kind);
    const Product<T> p{static_cast<const T*>(weight), static_cast<const T*>(x),
                       static_cast<const T*>(bias), nullptr, static_cast<T*>(out), outputs,
                       outputs, inputs, rows, x_stride, outputs, inputs};
    gs::with_team(threads, [&](gs::Team& team) { multiply_whole(p, team); });
  };
  if (!is_narrow) return run(float());
#ifdef GS_HAS_BF16
  run(uint16_t());
#endif
#endif
}

// The most rows of a step whose layers have int8 weights, for gs_run_layers; 0: none.
int gs_most_int8(int is_narrow) {
#ifdef GS_HAS_VNNI
  return int(is_narrow ? int8::kMostOfTeam<gs::BFloat16> : int8::kMostOfTeam<float>);
#endif
  return 0;
}

// All layers of a step of one new token per sequence, see few_stage.h.
int gs_run_layers(int is_narrow, const Stage* stage, const gs::Step* step, void* x, int64_t rows,
                  int64_t* reduce_ns) {
#ifdef __AVX512F__
  try {
#ifdef GS_HAS_VNNI
    if (stage->is_int8 && is_narrow)
      return StepOfLayers<gs::BFloat16, int8::Product<gs::BFloat16>>(*stage, *step, x, rows)
          .run(reduce_ns);
    if (stage->is_int8)
      return StepOfLayers<float, int8::Product<float>>(*stage, *step, x, rows).run(reduce_ns);
#endif
#ifdef GS_HAS_BF16
    if (is_narrow)
      return StepOfLayers<gs::BFloat16, Narrow>(*stage, *step, x, rows).run(reduce_ns);
#endif
    return StepOfLayers<float, Wide>(*stage, *step, x, rows).run(reduce_ns);
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
#endif
  return kNoMemory;
}

}  // extern "C"
