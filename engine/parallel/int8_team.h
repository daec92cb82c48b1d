// Products with int8 weights as a team's pieces of work, as few_multiply.h has them of plain ones.
#pragma once

#include "few_multiply.h"
#include "int8_tiles.h"
#include "int8_vectors.h"

#ifdef GS_HAS_VNNI
namespace int8 {
namespace {

// Of more rows of bfloat16 weights may be widened (packed_int8.cpp).
template <class T>
constexpr index_t kMostOfTeam = std::is_same<T, gs::BFloat16>::value ? 56 : kMostRows;

// The rows of ``p`` in memory of this thread: each writes all of them, since to wait for others would
// take longer.
template <class T>
Digits in_digits(const Product<T>& p, bool has_starts) {
  const Digits digits = room_for(p.rows, p.inputs, p.digits, has_starts);
  write_rows(p, digits, 0, p.rows);
  return digits;
}

template <class T>
index_t width_of(const Product<T>&) { return kOutputs; }
template <class T>
bool are_few(const Product<T>& p) { return p.rows <= kMostOfTeam<T>; }

template <class T, class Work>
void with_range(const Product<T>& p, const Work& work) {
#ifdef GS_HAS_AMX_INT8
  if (gs::can_use_amx()) {
    const Digits digits = in_digits(p, false);
    return work([&](const Product<T>& p, index_t begin, index_t end) {
      multiply_tiles(p, digits, begin, end);
    });
  }
#endif
  const Digits digits = in_digits(p, true);
  work([&](const Product<T>& p, index_t begin, index_t end) {
    multiply_vectors(p, digits, begin, end);
  });
}

template <class T>
void multiply(const Product<T>& p, gs::Team& team) {
  with_range(p, [&](const auto& range) {
    ::share_outputs(team, p.outputs, kOutputs,
                    [&](index_t begin, index_t end) { range(p, begin, end); });
  });
}

}  // namespace
}  // namespace int8
#endif
