// Operations on rows: residual sum with RMSNorm, SiLU-mul, and rotation of heads.
#pragma once

#include "threads.h"

namespace gs {

// out = x / sqrt(mean(x**2) + eps) * weight over d elements.
template <class T>
void norm_row(const T* x, const T* weight, T* out, index_t d, double eps) {
  using C = ComputeOf<T>;
  constexpr int kPair = Storage<T>::kPair;
  Vec<C> even{}, odd{};
  for (index_t i = 0; i < d; i += kPair) {
    auto p = load_pair(x + i, d - i);
    even += p.a * p.a;
    odd += p.b * p.b;
  }
  C factor = C(1) / std::sqrt(sum_lanes<C>(even + odd) / C(d) + C(eps));
  for (index_t i = 0; i < d; i += kPair) {
    auto p = load_pair(x + i, d - i);
    auto w = load_pair(weight + i, d - i);
    store_pair(out + i, d - i, {p.a * factor * w.a, p.b * factor * w.b});
  }
}

template <class T>
void add_row(T* x, const T* delta, index_t d) {
  constexpr int kPair = Storage<T>::kPair;
  for (index_t i = 0; i < d; i += kPair) {
    auto p = load_pair(x + i, d - i);
    auto q = load_pair(delta + i, d - i);
    store_pair(x + i, d - i, {p.a + q.a, p.b + q.b});
  }
}

// x += delta where there is one, then out = norm(x).
template <class T>
void add_norm(T* x, const T* delta, const T* weight, T* out, index_t rows, index_t d, double eps,
              int threads) {
  share_rows(threads, rows, d, [&](index_t first, index_t last) {
    for (index_t row = first; row < last; ++row) {
      if (delta) add_row(x + row * d, delta + row * d, d);
      norm_row(x + row * d, weight, out + row * d, d, eps);
    }
  });
}

template <class C>
inline Vec<C> silu(Vec<C> x) {
  Vec<C> t = x * C(-1.4426950408889634);
  t = t > splat<C>(Lanes<C>::kHighest) ? splat<C>(Lanes<C>::kHighest) : t;
  return x * reciprocal<C>(exp2_of<C>(t) + C(1));
}

// out = silu(gate) * up over n elements.
template <class T>
void gate_row(const T* gate, const T* up, T* out, index_t n) {
  using C = ComputeOf<T>;
  constexpr int kPair = Storage<T>::kPair;
  for (index_t i = 0; i < n; i += kPair) {
    auto g = load_pair(gate + i, n - i);
    auto u = load_pair(up + i, n - i);
    // Rounded between the two as torch's operations do, one after the other.
    T between[kPair];
    Storage<T>::store_pair(between, {silu<C>(g.a), silu<C>(g.b)});
    auto s = Storage<T>::load_pair(between);
    store_pair(out + i, n - i, {s.a * u.a, s.b * u.b});
  }
}

// gate_up[rows, blocks, 2, f] -> out[rows, blocks, f]
template <class T>
void silu_mul(const T* gate_up, T* out, index_t rows, index_t blocks, index_t f, int threads) {
  share_rows(threads, rows * blocks, f, [&](index_t first, index_t last) {
    for (index_t row = first; row < last; ++row)
      gate_row(gate_up + 2 * row * f, gate_up + (2 * row + 1) * f, out + row * f, f);
  });
}

// out = the head x[hd] turned by its position's angles, ``cos[hd/2] sin[hd/2]``.
template <class T>
void rotate_head(const T* x, const ComputeOf<T>* angles, T* out, index_t head_dim) {
  constexpr int kPair = Storage<T>::kPair;
  index_t half = head_dim / 2;
  for (index_t i = 0; i < half; i += kPair) {
    index_t n = half - i;
    auto a = load_pair(x + i, n), b = load_pair(x + half + i, n);
    auto cos = Storage<T>::in_order(load_pair(angles + i, n));
    auto sin = Storage<T>::in_order(load_pair(angles + half + i, n));
    store_pair(out + i, n, {a.a * cos.a - b.a * sin.a, a.b * cos.b - b.b * sin.b});
    store_pair(out + half + i, n, {b.a * cos.a + a.a * sin.a, b.b * cos.b + a.b * sin.b});
  }
}

}  // namespace gs
