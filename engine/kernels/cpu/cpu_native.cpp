// Operations of a decoder layer on a CPU; called by engine/kernels/layer_native.py through ctypes.
//
// Results do not depend on the number of threads nor on what else is in the step.

#include "attention.h"
#include "largest.h"

namespace {

// The order of DTYPE_CODES in layer_native.py.
template <class Work>
int by_dtype(int dtype, const Work& work) {
  try {
    switch (dtype) {
      case 0: return work(float()), 0;
      case 1: return work(double()), 0;
      case 2: return work(gs::BFloat16()), 0;
      case 3: return work(gs::Half()), 0;
      default: return 2;
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

extern "C" {

// Bit 0: shares torch's threads. Bit 1: bfloat16 products on AMX. Above: bytes of a vector.
int gs_features() {
  int found = gs::kVectorBytes << 2;
  if (gs::runtime()) found |= 1;
#ifdef GS_HAS_AMX
  if (gs::can_use_amx()) found |= 2;
#endif
  return found;
}

int gs_add_norm(int dtype, void* x, const void* delta, const void* weight, void* out,
                int64_t rows, int64_t d, double eps, int threads) {
  return by_dtype(dtype, [&](auto kind) {
    using T = decltype(kind);
    gs::add_norm(static_cast<T*>(x), static_cast<const T*>(delta), static_cast<const T*>(weight),
                 static_cast<T*>(out), rows, d, eps, threads);
  });
}

int gs_silu_mul(int dtype, const void* gate_up, void* out, int64_t rows, int64_t blocks, int64_t f,
                int threads) {
  return by_dtype(dtype, [&](auto kind) {
    using T = decltype(kind);
    gs::silu_mul(static_cast<const T*>(gate_up), static_cast<T*>(out), rows, blocks, f, threads);
  });
}

int gs_largest(int dtype, const void* x, int64_t* ids, int64_t rows, int64_t width, int64_t stride,
               int threads) {
  return by_dtype(dtype, [&](auto kind) {
    gs::largest(static_cast<const decltype(kind)*>(x), ids, rows, width, stride, threads);
  });
}

int gs_attend(int dtype, const gs::Shape* shape, const gs::Step* step, void* keys, void* values,
              const void* norms, const void* qkv, void* out, int64_t num_rows) {
  return by_dtype(dtype, [&](auto kind) {
    using T = decltype(kind);
    gs::attend<T>(*shape, *step, {static_cast<T*>(keys), static_cast<T*>(values)},
                  static_cast<const T*>(norms), static_cast<const T*>(qkv), static_cast<T*>(out),
                  num_rows);
  });
}

}  // extern "C"
