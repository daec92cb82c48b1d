// What the checks share: the compiled operations, numbers of each type, and the count of wrong ones.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <random>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../../../engine/kernels/cpu/paged.h"

extern "C" {
int gs_features();
int gs_add_norm(int dtype, void* x, const void* delta, const void* weight, void* out, int64_t rows,
                int64_t d, double eps, int threads);
int gs_silu_mul(int dtype, const void* gate_up, void* out, int64_t rows, int64_t blocks, int64_t f,
                int threads);
int gs_attend(int dtype, const gs::Shape* shape, const gs::Step* step, void* keys, void* values,
              const void* norms, const void* qkv, void* out, int64_t num_rows);
int gs_int8_way();
int gs_multiply_int8(int kind, int way, const int8_t* weight, const float* scales, const void* x,
                     const void* bias, const void* total, void* out, int64_t pitch,
                     int64_t outputs, int64_t inputs, int64_t rows, int64_t x_stride, int digits,
                     int threads);
int gs_most_few(int is_narrow);
int gs_has_parts(int is_narrow);
void gs_multiply_few(int is_narrow, const void* weight, const void* x, const void* bias,
                     const void* total, void* out, int64_t block, int64_t pitch, int64_t outputs,
                     int64_t inputs, int64_t rows, int64_t x_stride, int threads);
int gs_most_plain(int is_narrow);
void gs_multiply_plain(int is_narrow, const void* weight, const void* x, const void* bias,
                       void* out, int64_t outputs, int64_t inputs, int64_t rows, int64_t x_stride,
                       int threads);
}

namespace {

using gs::BFloat16;
using gs::Half;
using gs::index_t;
constexpr int kThreads = 2;
constexpr double kEps = 1e-5;

int num_checked = 0, num_wrong = 0;

void expect(const char* what, const char* type, double got, double want, double tolerance,
            double size = 1.0) {
  ++num_checked;
  if (std::abs(got - want) <= tolerance * std::max(size, std::abs(want))) return;
  if (++num_wrong <= 20) std::printf("%s of %s: %.9g, not %.9g\n", what, type, got, want);
}

// Of a type: its numbers in by_dtype and in gs_multiply_int8 (-1: none), and how near is near.
template <class T>
struct Kind;
template <>
struct Kind<float> {
  static constexpr int kCode = 0, kInt8 = 0;
  static constexpr double kNear = 2e-5, kProduct = 5e-6;
  static constexpr const char* kName = "float32";
};
template <>
struct Kind<double> {
  static constexpr int kCode = 1, kInt8 = -1;
  static constexpr double kNear = 1e-11, kProduct = 1e-11;
  static constexpr const char* kName = "float64";
};
template <>
struct Kind<BFloat16> {
  static constexpr int kCode = 2, kInt8 = 1;
  static constexpr double kNear = 3e-2, kProduct = 1e-2;
  static constexpr const char* kName = "bfloat16";
};
template <>
struct Kind<Half> {
  static constexpr int kCode = 3, kInt8 = 2;
  static constexpr double kNear = 4e-3, kProduct = 1e-3;
  static constexpr const char* kName = "float16";
};

double wide(float x) { return x; }
double wide(double x) { return x; }
double wide(Half x) { return double(float(x)); }
double wide(BFloat16 x) { return gs::bits_as<float>(uint32_t(x.bits) << 16); }

template <class T>
T narrow(double x) {
  if constexpr (std::is_same<T, BFloat16>::value) {
    const uint32_t bits = gs::bits_as<uint32_t>(float(x));
    return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
  } else {
    return T(x);
  }
}
template <class T>
double rounded(double x) { return wide(narrow<T>(x)); }

std::mt19937 source(0);

template <class T>
std::vector<T> drawn(index_t count, double scale = 1.0) {
  std::normal_distribution<double> normal(0.0, scale);
  std::vector<T> found(count);
  for (T& one : found) one = narrow<T>(normal(source));
  return found;
}

}  // namespace
