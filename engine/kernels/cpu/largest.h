// The largest logit of a row, by the rule of engine/sampling/rules.py.
#pragma once

#include "threads.h"

namespace gs {

constexpr index_t kNoToken = -1;

// Which of the ``width`` numbers is the largest: the first of equals, NaN as -inf. kNoToken where none
// is finite.
template <class T>
index_t largest_of(const T* x, index_t width) {
  using C = ComputeOf<T>;
  constexpr int kPair = Storage<T>::kPair;
  Vec<C> top = splat<C>(-kInfinity<C>);
  const index_t whole = width / kPair * kPair;
  for (index_t i = 0; i < whole; i += kPair) {
    const auto p = Storage<T>::load_pair(x + i);
    top = max_of(max_of(top, p.a), p.b);
  }
  C best = max_lanes<C>(top);
  auto number = [&](index_t i) { return in_compute(x[i]); };
  for (index_t i = whole; i < width; ++i) best = number(i) > best ? number(i) : best;
  if (best == -kInfinity<C>) return kNoToken;
  bool is_finite = best < kInfinity<C>;
  for (index_t i = 0; !is_finite && i < width; ++i)
    is_finite = number(i) > -kInfinity<C> && number(i) < kInfinity<C>;
  if (!is_finite) return kNoToken;
  index_t at = 0;
  while (number(at) != best) ++at;
  return at;
}

// x[rows, width], rows apart by ``stride`` -> ids[rows].
template <class T>
void largest(const T* x, index_t* ids, index_t rows, index_t width, index_t stride, int threads) {
  share_rows(threads, rows, width, [&](index_t first, index_t last) {
    for (index_t row = first; row < last; ++row) ids[row] = largest_of(x + row * stride, width);
  });
}

}  // namespace gs
