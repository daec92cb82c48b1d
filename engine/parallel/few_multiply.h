// Which of the ways multiplies, shared by a team of threads.
#pragma once

#include "../kernels/cpu/team.h"
#include "few_many.h"
#include "few_plain.h"
#include "few_tiles.h"
#include "few_vectors.h"

namespace {

// The most rows of floats that are multiplied as they lie.
constexpr int kFewFloats = 48;
// With more rows oneDNN is as fast, in float32 with more than kFewFloats; where bfloat16 is widened it
// never is.
constexpr int kMostOfTiles = 32, kMostPlain = 8, kMostWidened = 1 << 30;

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
// How many outputs, a multiple of ``width``, are a piece of a team's work: few, so that who is late
// delays little, but as many as are read as two streams, or as four where all threads have as many.
inline int64_t outputs_each(const gs::Team& team, int64_t outputs, int64_t width) {
  const int64_t blocks = gs::ceil_div(outputs, width);
  if (team.size() == 1) return blocks * width;
  const bool is_even = outputs % (4 * kBlock * team.size()) == 0;
  const int64_t most = std::max<int64_t>(1, (is_even ? 4 : 2) * kBlock / width);
  return std::min(most, gs::ceil_div(blocks, int64_t(2 * team.size()))) * width;
}

// ``work(begin, end)`` over outputs, in multiples of ``width``.
template <class Work>
void share_outputs(gs::Team& team, int64_t outputs, int64_t width, const Work& work) {
  const int64_t each = outputs_each(team, outputs, width);
  team.share(gs::ceil_div(outputs, each),
             [&](int64_t i) { work(i * each, std::min(outputs, (i + 1) * each)); });
}

// Outputs that are multiplied together, of a packed weight.
template <class T>
int64_t width_of(const Product<T>& p) { return std::min(p.block, kBlock); }

// Whether a thread multiplies any outputs of all rows by itself, as with_range lets it.
inline bool are_few(const Wide& p) { return p.rows <= kFewFloats; }

// Calls ``work(multiply)``; ``multiply(p, begin, end)`` makes those outputs of ``p``, or of another
// weight that the same rows meet, on this thread.
template <class T, class Work>
void with_floats(const Product<T>& p, const Work& work) {
  const FloatRows x = as_floats(p);
  work([x](const Product<T>& p, int64_t begin, int64_t end) {
    multiply_by_floats(p, x, begin, end);
  });
}
template <class Work>
void with_range(const Wide& p, const Work& work) { with_floats(p, work); }

#ifdef GS_HAS_BF16
inline bool are_few(const Narrow& p) {
  return has_tiles() || !widens() || p.rows <= kFewFloats;
}
template <class Work>
void with_range(const Narrow& p, const Work& work) {
#ifdef GS_HAS_AMX
  if (has_tiles()) return work(multiply_by_tiles);
#endif
  if (!widens()) return work(multiply_by_vectors<uint16_t>);
  with_floats(p, work);
}
#endif

template <class T>
void multiply_few(const Product<T>& p, gs::Team& team) {
  with_range(p, [&](const auto& multiply) {
    share_outputs(team, p.outputs, width_of(p),
                  [&](int64_t begin, int64_t end) { multiply(p, begin, end); });
  });
}

// ``Weight`` of few_many.h.
template <class Weight, class T>
void multiply_panels(const Product<T>& all, gs::Team& team) {
  const int64_t most = gs::ceil_div(all.rows, gs::ceil_div(all.rows, kGroupRows));
  const int64_t each = std::min(kGroupOutputs, outputs_each(team, all.outputs, 32));
  float* panels = team.tell([&] { return gs::scratch<float, 54>((most + kPanel14) * all.inputs); });
  for (int64_t row = 0; row < all.rows; row += most) {
    const auto p = some_rows(all, row, most);
    team.share(panels_of(p), [&](int64_t panel) { lay_out_panel(p, panel, panels); });
    team.share(gs::ceil_div(p.outputs, each), [&](int64_t i) {
      multiply_group<Weight>(p, panels, i * each, std::min(p.outputs, (i + 1) * each));
    });
  }
}

// With a plain weight.
template <class T>
void multiply_whole(const Product<T>& p, gs::Team& team) {
  const bool is_float = sizeof(T) == 4 || widens();
  if (p.rows > kMostPlain && is_float && p.outputs % 32 == 0)
    return multiply_panels<PlainWeight>(p, team);
  share_outputs(team, p.outputs, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < p.rows; row += kMostPlain)
      multiply_plain<kMostPlain>(some_rows(p, row, kMostPlain), begin, end);
  });
}

// With a packed one.
template <class T>
void multiply(const Product<T>& p, gs::Team& team) {
  if (are_few(p)) return multiply_few(p, team);
  multiply_panels<PackedWeight>(p, team);
}
#endif

}  // namespace
