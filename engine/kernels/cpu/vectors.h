// Vectors as wide as the processor's registers, and how each storage type gets in and out of them.
//
// Compiler vector extensions (g++ and clang++), so that one source serves AVX-512, AVX2 and NEON.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

namespace gs {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kNumRegisters = 32;
#else
constexpr int kNumRegisters = 16;
#endif

using index_t = int64_t;
struct BFloat16 {
  uint16_t bits;
};
#if defined(__aarch64__)
using Half = __fp16;  // g++ knows no _Float16 in C++ there before 13
#else
using Half = _Float16;
#endif

// What one computes in: vectors of C, and integers of its width.
template <class C>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(kVectorBytes)));
  typedef int32_t I __attribute__((vector_size(kVectorBytes)));
  using Int = int32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr Int kOne = 0x3f800000;
  static constexpr float kRounder = 12582912.0f;  // 1.5 * 2**23
  static constexpr float kLowest = -126.0f, kHighest = 126.0f;
};
template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(kVectorBytes)));
  typedef int64_t I __attribute__((vector_size(kVectorBytes)));
  using Int = int64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr Int kOne = 0x3ff0000000000000;
  static constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2**52
  static constexpr double kLowest = -1022.0, kHighest = 1022.0;
};
template <class C>
using Vec = typename Lanes<C>::V;
template <class C>
constexpr int kWidth = kVectorBytes / sizeof(C);
template <class C>
constexpr C kInfinity = std::numeric_limits<C>::infinity();

template <class C>
inline Vec<C> splat(C value) {
  return value - Vec<C>{};  // compilers see through a difference, not through a sum (-0 + 0 is 0)
}
template <class C>
inline Vec<C> load(const C* p) {
  Vec<C> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class C>
inline void store(C* p, Vec<C> v) {
  std::memcpy(p, &v, sizeof v);
}
template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
// NaN in either operand of a comparison keeps ``a``.
template <class V>
inline V max_of(V a, V b) {
  return b > a ? b : a;
}

// Lanes of a (0 .. W-1) and b (W .. 2W-1) by constant numbers.
template <int... L, class V>
inline V pick(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, L...);
#else
  using Int = typename std::conditional<sizeof(a[0]) == 4, int32_t, int64_t>::type;
  typedef Int M __attribute__((vector_size(kVectorBytes)));
  return __builtin_shuffle(a, b, M{L...});
#endif
}

// A square of W vectors, transposed by log2(W) rounds of exchanges.
template <int Step, class V, size_t... L>
inline void exchange(V* rows, std::index_sequence<L...>) {
  constexpr int W = sizeof...(L);
  for (int i = 0; i < W; ++i) {
    if (i & Step) continue;
    V a = rows[i], b = rows[i + Step];
    rows[i] = pick<(int(L) & Step ? W + int(L) - Step : int(L))...>(a, b);
    rows[i + Step] = pick<(int(L) & Step ? W + int(L) : int(L) + Step)...>(a, b);
  }
}
template <class C>
inline void transpose(Vec<C>* rows) {
  constexpr int W = kWidth<C>;
  constexpr auto lanes = std::make_index_sequence<W>();
  if constexpr (W > 1) exchange<1>(rows, lanes);
  if constexpr (W > 2) exchange<2>(rows, lanes);
  if constexpr (W > 4) exchange<4>(rows, lanes);
  if constexpr (W > 8) exchange<8>(rows, lanes);
}

// Horizontal results, always in the same order.
template <class C>
inline C sum_lanes(Vec<C> v) {
  C part[kWidth<C>];
  store(part, v);
  for (int width = kWidth<C> / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  return part[0];
}
template <class C>
inline C max_lanes(Vec<C> v) {
  C best = v[0];
  for (int i = 1; i < kWidth<C>; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// 2**f for f in [-1/2, 1/2], relative error 4e-6, 2e-9 and 1e-16 by degree.
template <int Degree>
struct Exp2Terms;
template <>
struct Exp2Terms<4> {
  static constexpr double kTerms[] = {
      0.9999999999999997, 0.6931210452034274, 0.24022349038021354, 0.05592197584225338,
      0.009666368515338686};
};
template <>
struct Exp2Terms<6> {
  static constexpr double kTerms[] = {
      1.0, 0.6931472067028329, 0.24022650922289554, 0.05550327226669895, 0.00961805667843204,
      0.0013400428177711937, 0.00015461444724808513};
};
template <>
struct Exp2Terms<12> {
  static constexpr double kTerms[] = {
      1.0, 0.6931471805599453, 0.2402265069591007, 0.055504108664821576, 0.009618129107628477,
      0.0013333558146428441, 0.00015403530393381606, 1.5252733804059838e-05,
      1.3215486790144305e-06, 1.0178086009239696e-07, 7.054911620801121e-09,
      4.44553827187081e-10, 2.5678435993488196e-11};
};
template <class C>
constexpr int kExactDegree = sizeof(C) == 4 ? 6 : 12;

#if defined(__AVX512DQ__)
// The same for f in [0, 1], exact at 0.
template <int Degree>
struct FloorTerms;
template <>
struct FloorTerms<4> {
  static constexpr float kTerms[] = {
      1.0, 0.6931339926201517, 0.24064704812114784, 0.05344102927073302, 0.012763113885718269};
};
template <>
struct FloorTerms<6> {
  static constexpr float kTerms[] = {
      1.0, 0.6931471708649757, 0.24022720418111218, 0.05549602356397317, 0.009652195056053893,
      0.0012692166069498963, 0.00020817915039591148};
};

// AVX-512 splits a number from its floor, and multiplies by the power of a floor, in one instruction
// each, with the right ends: half as many in all.
template <int Degree>
inline Vec<float> exp2_by_floor(Vec<float> t) {
  auto f = (Vec<float>)_mm512_reduce_ps((__m512)t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  constexpr auto& terms = FloorTerms<Degree>::kTerms;
  Vec<float> sum = splat<float>(terms[Degree]);
  for (int i = Degree - 1; i >= 0; --i) sum = sum * f + terms[i];
  return (Vec<float>)_mm512_scalef_ps((__m512)sum, (__m512)t);
}
#endif

// 2**t for t up to the largest exponent; 0 below the smallest normal number, NaN for NaN.
template <class C, int Degree = kExactDegree<C>>
inline Vec<C> exp2_of(Vec<C> t) {
#if defined(__AVX512DQ__)
  if constexpr (sizeof(C) == 4) return exp2_by_floor<Degree>(t);
#endif
  using L = Lanes<C>;
  using V = Vec<C>;
  V shifted = t + L::kRounder;  // the nearest integer, in the lowest bits
  V f = t - (shifted - L::kRounder);
  constexpr auto& terms = Exp2Terms<Degree>::kTerms;
  V sum = splat<C>(C(terms[Degree]));
  for (int i = Degree - 1; i >= 0; --i) sum = sum * f + C(terms[i]);
  auto power = (bits_as<typename L::I>(shifted) << L::kMantissaBits) + L::kOne;
  V result = sum * bits_as<V>(power);
  return t < splat<C>(L::kLowest) ? V{} : result;
}

// 1 / x for finite x that is not 0. An estimate of 14 bits and one step of Newton's take a third of
// the time of a division.
template <class C>
inline Vec<C> reciprocal(Vec<C> x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(C) == 4) {
    Vec<C> estimate = (Vec<C>)_mm512_rcp14_ps((__m512)x);
    return estimate * (C(2) - x * estimate);
  }
#endif
  return C(1) / x;
}

// Two vectors of 2W neighbours in memory, in the order that is cheapest to load: in bfloat16 ``a``
// holds the even and ``b`` the odd ones, else the first and the second half.
template <class C>
struct Pair {
  Vec<C> a, b;
};
template <class T>
struct Storage;

template <class C>
struct SameStorage {
  using Compute = C;
  static constexpr int kPair = 2 * kWidth<C>;
  static Pair<C> load_pair(const C* p) { return {load(p), load(p + kWidth<C>)}; }
  static void store_pair(C* p, Pair<C> x) {
    store(p, x.a);
    store(p + kWidth<C>, x.b);
  }
  static Pair<C> in_order(Pair<C> x) { return x; }
};
template <>
struct Storage<float> : SameStorage<float> {};
template <>
struct Storage<double> : SameStorage<double> {};

template <>
struct Storage<BFloat16> {
  using Compute = float;
  using V = Vec<float>;
  typedef uint32_t U __attribute__((vector_size(kVectorBytes)));
  static constexpr int kPair = 2 * kWidth<float>;

  static Pair<float> load_pair(const BFloat16* p) {
    U raw;
    std::memcpy(&raw, p, sizeof raw);
    return {bits_as<V>(raw << 16), bits_as<V>(raw & 0xffff0000u)};
  }
  static void store_pair(BFloat16* p, Pair<float> x) {
#if defined(__AVX512BF16__)
    auto halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)x.b, (__m512)x.a);
    auto order = (__m512i)(U{} + 0x00100000u + kSteps * 0x00010001u);  // 0 16 1 17 ...
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(order, halves));
#else
    U both = (rounded(x.a) >> 16) | (rounded(x.b) & 0xffff0000u);
    std::memcpy(p, &both, sizeof both);
#endif
  }
  // To nearest, ties to even, in the upper halves.
  static U rounded(V v) {
    U bits = bits_as<U>(v);
    U up = bits + 0x7fffu + ((bits >> 16) & 1u);
    return v == v ? up : U{} + 0x7fc00000u;
  }
  // From the order in memory to that of load_pair.
  static Pair<float> in_order(Pair<float> x) {
    return in_order(x, std::make_index_sequence<kWidth<float>>());
  }

 private:
  template <size_t... L>
  static Pair<float> in_order(Pair<float> x, std::index_sequence<L...>) {
    return {pick<(2 * int(L))...>(x.a, x.b), pick<(2 * int(L) + 1)...>(x.a, x.b)};
  }
#if defined(__AVX512BF16__)
  static constexpr U kSteps = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#endif
};

template <>
struct Storage<Half> {
  using Compute = float;
  static constexpr int kPair = 2 * kWidth<float>;
  typedef Half H __attribute__((vector_size(kVectorBytes / 2)));

  static Pair<float> load_pair(const Half* p) {
    H low, high;
    std::memcpy(&low, p, sizeof low);
    std::memcpy(&high, p + kWidth<float>, sizeof high);
    return {__builtin_convertvector(low, Vec<float>), __builtin_convertvector(high, Vec<float>)};
  }
  static void store_pair(Half* p, Pair<float> x) {
    H low = __builtin_convertvector(x.a, H), high = __builtin_convertvector(x.b, H);
    std::memcpy(p, &low, sizeof low);
    std::memcpy(p + kWidth<float>, &high, sizeof high);
  }
  static Pair<float> in_order(Pair<float> x) { return x; }
};

template <class T>
using ComputeOf = typename Storage<T>::Compute;

// One number.
inline float in_compute(float x) { return x; }
inline double in_compute(double x) { return x; }
inline float in_compute(Half x) { return float(x); }
inline float in_compute(BFloat16 x) { return bits_as<float>(uint32_t(x.bits) << 16); }

// The first n (at most a pair's) elements at p, zeros behind them.
template <class T>
inline Pair<ComputeOf<T>> load_pair(const T* p, index_t n) {
  constexpr int kPair = Storage<T>::kPair;
  if (n >= kPair) return Storage<T>::load_pair(p);
  alignas(64) T padded[kPair];
  std::memset(padded, 0, sizeof padded);
  std::memcpy(padded, p, n * sizeof(T));
  return Storage<T>::load_pair(padded);
}
template <class T>
inline void store_pair(T* p, index_t n, Pair<ComputeOf<T>> x) {
  constexpr int kPair = Storage<T>::kPair;
  if (n >= kPair) return Storage<T>::store_pair(p, x);
  alignas(64) T padded[kPair];
  Storage<T>::store_pair(padded, x);
  std::memcpy(p, padded, n * sizeof(T));
}

inline index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }
inline index_t round_up(index_t a, index_t b) { return ceil_div(a, b) * b; }

}  // namespace gs
