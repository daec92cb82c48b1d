// New tokens of one sequence, causal, over its blocks: blocks of queries against tiles of keys.
//
// Everything is kept transposed, queries in the lanes: a score is a vector of queries, so maxima,
// sums and masks need nothing across lanes. All query heads of a KV head share its tiles. Keys
// behind a query are skipped, and tiles begin at multiples of kKeys whatever the chunk, so that a
// row's sums do not depend on how a prompt was cut.
#pragma once

#include "paged.h"

namespace gs {

constexpr index_t kKeys = 128;        // keys of a tile
constexpr index_t kQueryRows = 1024;  // queries times heads of a block, where there are many blocks

// ``count`` new tokens of a sequence from ``first`` on, all heads of one KV head.
struct PrefillWork {
  index_t seq, kv, first, count;
};

// Blocks of all chunks, the longest contexts first.
template <class T>
std::vector<PrefillWork> plan_prefills(const Call<T>& call) {
  const Step& step = call.step;
  index_t rows = kQueryRows, total = step.num_tokens * call.shape.num_q;
  while (rows > 64 && total / rows < 4 * step.num_threads) rows /= 2;
  index_t tokens = std::max<index_t>(1, rows / call.group());
  std::vector<PrefillWork> work;
  for (index_t seq = 0; seq < step.num_seqs; ++seq) {
    index_t length = step.query_lens[seq];
    if (length < 2) continue;
    for (index_t first = (length - 1) / tokens * tokens; first >= 0; first -= tokens)
      for (index_t kv = 0; kv < call.shape.num_kv; ++kv)
        work.push_back({seq, kv, first, std::min(tokens, length - first)});
  }
  return work;
}

// A query of a block: its row in the step, its head, and its position in the sequence.
struct Column {
  index_t row, head, position;
};

// The queries of a block, token by token, head by head; the last one again up to a whole panel.
template <class T>
std::vector<Column> list_columns(const Call<T>& call, const PrefillWork& work, index_t panel) {
  index_t group = call.group(), context = call.step.totals[work.seq] - call.step.query_lens[work.seq];
  std::vector<Column> columns;
  columns.reserve(round_up(work.count * group, panel));
  for (index_t token = work.first; token < work.first + work.count; ++token)
    for (index_t g = 0; g < group; ++g)
      columns.push_back({call.step.starts[work.seq] + token, work.kv * group + g, context + token});
  columns.resize(round_up(columns.size(), panel), columns.back());
  return columns;
}

// What a panel of queries has seen so far.
template <class C>
struct Softmax {
  Vec<C> best = splat<C>(-kInfinity<C>), sum{};
};

template <class T>
class Prefill {
  using C = ComputeOf<T>;
  using V = Vec<C>;
  using I = typename Lanes<C>::I;
  static constexpr int W = kWidth<C>;
  static constexpr int kColumns = 2 * W;                      // queries of a panel
  static constexpr int kRows = kNumRegisters >= 32 ? 8 : 4;  // rows of a product at once
  // Shares of 16 bits and their sums need no more.
  static constexpr int kDegree = std::is_same<T, C>::value ? kExactDegree<C> : 4;

 public:
  Prefill(const Call<T>& call, const PrefillWork& work)
      : call_(call),
        work_(work),
        columns_(list_columns(call, work, kColumns)),
        padded_(round_up(call.shape.head_dim, Storage<T>::kPair)),
        num_panels_(index_t(columns_.size()) / kColumns),
        scale_(C(call.scale())) {}

  void run() {
    queries_ = scratch<C, 10>(num_panels_ * padded_ * kColumns);
    sums_ = scratch<C, 11>(num_panels_ * padded_ * kColumns);
    keys_ = scratch<C, 12>(kKeys * padded_);
    values_ = scratch<C, 13>(kKeys * padded_);
    scores_ = scratch<C, 14>(kKeys * kColumns);
    softmax_.resize(2 * num_panels_);
    for (index_t panel = 0; panel < num_panels_; ++panel) pack_queries(panel);
    index_t visible = columns_.back().position + 1;
    for (index_t first = 0; first < visible; first += kKeys) {
      pack_tile(first, std::min(kKeys, visible - first));
      for (index_t panel = 0; panel < num_panels_; ++panel) attend(panel, first);
    }
    for (index_t panel = 0; panel < num_panels_; ++panel) finish(panel);
  }

 private:
  void pack_queries(index_t panel) {
    for (int half = 0; half < 2; ++half) {
      const Column* columns = &columns_[panel * kColumns + half * W];
      C* to = queries_ + panel * padded_ * kColumns + half * W;
      for (index_t d = 0; d < padded_; d += 2 * W) {
        V rows[2][W];
        for (int i = 0; i < W; ++i) {
          const T* from = call_.query(columns[i].row, columns[i].head) + d;
          auto p = to_memory_order(load_pair(from, call_.shape.head_dim - d));
          rows[0][i] = p.a;
          rows[1][i] = p.b;
        }
        for (int part = 0; part < 2; ++part) {
          transpose<C>(rows[part]);
          for (int i = 0; i < W; ++i) store(to + (d + part * W + i) * kColumns, rows[part][i]);
        }
      }
    }
  }

  void pack_tile(index_t first, index_t n) {
    index_t offsets[kKeys];
    token_offsets(call_, work_.seq, first, first + n, offsets);
    index_t head_dim = call_.shape.head_dim, head_at = work_.kv * head_dim;
    for (index_t t = 0; t < n; ++t) {
      widen(call_.cache.keys + offsets[t] + head_at, keys_ + t * padded_);
      widen(call_.cache.values + offsets[t] + head_at, values_ + t * padded_);
    }
    index_t rest = round_up(n, kRows) - n;  // read, and hidden
    std::memset(keys_ + n * padded_, 0, rest * padded_ * sizeof(C));
  }

  void widen(const T* from, C* to) const {
    constexpr int kPair = Storage<T>::kPair;
    for (index_t d = 0; d < padded_; d += kPair) {
      auto p = to_memory_order(load_pair(from + d, call_.shape.head_dim - d));
      store(to + d, p.a);
      store(to + d + W, p.b);
    }
  }
  static Pair<C> to_memory_order(Pair<C> p) {
    if constexpr (std::is_same<T, BFloat16>::value)
      return interleave(p, std::make_index_sequence<W>());
    else
      return p;
  }
  template <size_t... L>
  static Pair<C> interleave(Pair<C> p, std::index_sequence<L...>) {
    return {pick<(int(L) / 2 + (int(L) & 1) * W)...>(p.a, p.b),
            pick<(W / 2 + int(L) / 2 + (int(L) & 1) * W)...>(p.a, p.b)};
  }

  void attend(index_t panel, index_t first) {
    const index_t last = columns_[(panel + 1) * kColumns - 1].position;
    if (last < first) return;
    const index_t n = std::min(kKeys, last - first + 1), whole = round_up(n, kRows);
    const C* queries = queries_ + panel * padded_ * kColumns;
    C* sums = sums_ + panel * padded_ * kColumns;
    for (index_t t = 0; t < whole; t += kRows)
      product(keys_ + t * padded_, padded_, 1, queries, padded_, scores_ + t * kColumns, nullptr);
    hide_later(panel * kColumns, first, whole);
    V kept[2];
    soften(softmax_.data() + 2 * panel, whole, kept);
    for (index_t d = 0; d < padded_; d += kRows)
      product(values_ + d, 1, padded_, scores_, n, sums + d * kColumns, first ? kept : nullptr);
  }

  // out[kRows, kColumns] = a[kRows, depth] b[depth, kColumns], and what out had times ``kept`` [kColumns]
  // (null: nothing).
  static void product(const C* a, index_t row_stride, index_t depth_stride, const C* b,
                      index_t depth, C* out, const V* kept) {
    V sums[kRows][2];
    if (kept)
#pragma GCC unroll 16
      for (int i = 0; i < 2 * kRows; ++i) sums[i / 2][i % 2] = load(out + i * W) * kept[i % 2];
    else
#pragma GCC unroll 16
      for (int i = 0; i < 2 * kRows; ++i) sums[i / 2][i % 2] = V{};
    for (index_t k = 0; k < depth; ++k) {
      V left = load(b + k * kColumns), right = load(b + k * kColumns + W);
      const C* column = a + k * depth_stride;
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        sums[i][0] += left * column[i * row_stride];
        sums[i][1] += right * column[i * row_stride];
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 2 * kRows; ++i) store(out + i * W, sums[i / 2][i % 2]);
  }

  void hide_later(index_t at, index_t first, index_t n) {
    using Int = typename Lanes<C>::Int;
    for (int half = 0; half < 2; ++half) {
      I positions;
      for (int i = 0; i < W; ++i) positions[i] = Int(columns_[at + half * W + i].position - first);
      for (index_t t = std::max<index_t>(0, positions[0] + 1); t < n; ++t) {
        C* score = scores_ + t * kColumns + half * W;
        store(score, positions < Int(t) ? splat<C>(-kInfinity<C>) : load(score));
      }
    }
  }

  // Scores of n keys (whole rows) -> shares, not yet divided by their sum; ``kept`` is what is left
  // of those of the tiles before.
  void soften(Softmax<C>* softmax, index_t n, V* kept) {
    V tops[4][2];  // apart, so that none waits for another
    for (int i = 0; i < 8; ++i) tops[i / 2][i % 2] = splat<C>(-kInfinity<C>);
    for (index_t t = 0; t < n; t += 4)
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i)
        tops[i / 2][i % 2] = max_of(tops[i / 2][i % 2], load(scores_ + t * kColumns + i * W));
    for (int half = 0; half < 2; ++half) {
      const V top = max_of(max_of(tops[0][half], tops[1][half]), max_of(tops[2][half], tops[3][half]));
      const V best = max_of(softmax[half].best, top * scale_);
      V added[2] = {};
      for (index_t t = 0; t < n; t += 2)
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          C* score = scores_ + (t + i) * kColumns + half * W;
          const V share = exp2_of<C, kDegree>(load(score) * scale_ - best);
          store(score, share);
          added[i] += share;
        }
      kept[half] = exp2_of<C>(softmax[half].best - best);
      softmax[half].sum = softmax[half].sum * kept[half] + (added[0] + added[1]);
      softmax[half].best = best;
    }
  }

  void finish(index_t panel) {
    index_t num_rows = work_.count * call_.group();
    for (int half = 0; half < 2; ++half) {
      V factor = C(1) / softmax_[2 * panel + half].sum;
      const C* sums = sums_ + panel * padded_ * kColumns + half * W;
      for (index_t d = 0; d < padded_; d += 2 * W) {
        V rows[2][W];
        for (int part = 0; part < 2; ++part) {
          for (int i = 0; i < W; ++i)
            rows[part][i] = load(sums + (d + part * W + i) * kColumns) * factor;
          transpose<C>(rows[part]);
        }
        for (int i = 0; i < W; ++i) {
          index_t column = panel * kColumns + half * W + i;
          if (column >= num_rows) break;
          T* out = call_.output(columns_[column].row, columns_[column].head) + d;
          store_pair(out, call_.shape.head_dim - d,
                     Storage<T>::in_order({rows[0][i], rows[1][i]}));
        }
      }
    }
  }

  const Call<T>& call_;
  const PrefillWork& work_;
  std::vector<Column> columns_;
  index_t padded_, num_panels_;
  C scale_;
  C *queries_, *sums_, *keys_, *values_, *scores_;
  std::vector<Softmax<C>> softmax_;
};

}  // namespace gs
