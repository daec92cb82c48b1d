// Which of the ways multiplies, shared by a team of threads.
#pragma once

#include "../kernels/cpu/team.h"
#include "few_many.h"
#include "few_plain.h"
#include "few_tiles.h"
#include "few_vectors.h"

namespace {

// With more rows oneDNN is as fast; bfloat16 that is widened it never is.
constexpr int kMostFloats = 32, kMostOfTiles = 32, kMostPlain = 8, kMostWidened = 1 << 30;
constexpr int64_t kFewOfMany = 48;  // rows that are multiplied as they lie

#ifdef GS_HAS_BF16
inline bool has_tiles() {
#ifdef GS_HAS_AMX
  return gs::can_use_amx();
#else
  return false;
#endif
}
#endif

#ifdef __AVX512F__
// ``work(begin, end)`` over outputs, in multiples of ``width``: a few pieces for each thread.
template <class Work>
void share_outputs(gs::Team& team, int64_t outputs, int64_t width, const Work& work) {
  const int64_t blocks = gs::ceil_div(outputs, width);
  const int64_t each = gs::ceil_div(blocks, int64_t(team.size() > 1 ? 4 * team.size() : 1)) * width;
  team.share(gs::ceil_div(outputs, each),
             [&](int64_t i) { work(i * each, std::min(outputs, (i + 1) * each)); });
}
template <class T, class Work>
void share_blocks(gs::Team& team, const Product<T>& p, const Work& work) {
  share_outputs(team, p.outputs, std::min(p.block, kBlock), work);
}

template <class T>
void multiply_few_floats(const Product<T>& p, gs::Team& team) {
  const FloatRows x = as_floats(p);
  share_blocks(team, p, [&](int64_t begin, int64_t end) { multiply_by_floats(p, x, begin, end); });
}

inline void multiply(const Wide& p, gs::Team& team) { multiply_few_floats(p, team); }

#ifdef GS_HAS_BF16
// ``Weight`` of few_many.h.
template <class Weight>
void multiply_panels(const Narrow& p, gs::Team& team, int64_t width) {
  float* rows = team.tell([&] { return gs::scratch<float, 54>(panels_of(p) * kPanel14 * p.inputs); });
  team.share(panels_of(p), [&](int64_t panel) { lay_out_panel(p, panel, rows); });
  share_outputs(team, p.outputs, width, [&](int64_t begin, int64_t end) {
    multiply_many<Weight>(p, rows, begin, end);
  });
}

inline void multiply(const Narrow& p, gs::Team& team) {
#ifdef GS_HAS_AMX
  if (has_tiles())
    return share_blocks(team, p,
                        [&](int64_t begin, int64_t end) { multiply_by_tiles(p, begin, end); });
#endif
  if (!widens())
    return share_blocks(team, p,
                        [&](int64_t begin, int64_t end) { multiply_by_vectors(p, begin, end); });
  if (p.rows <= kFewOfMany) return multiply_few_floats(p, team);
  multiply_panels<PackedWeight>(p, team, std::min(p.block, kBlock));
}

// With a plain weight.
inline void multiply_whole(const Narrow& p, gs::Team& team) {
  if (p.rows > kMostPlain && widens() && p.outputs % 32 == 0)
    return multiply_panels<PlainWeight>(p, team, 32);
  share_outputs(team, p.outputs, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < p.rows; row += kMostPlain)
      multiply_plain<kMostPlain>(some_rows(p, row, kMostPlain), begin, end);
  });
}
#endif
#endif

}  // namespace
