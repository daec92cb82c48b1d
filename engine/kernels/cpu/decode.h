// One new token per sequence, over its blocks where they lie.
//
// Work is cut by sequence, by chunk of context (of a fixed length, so that sums do not depend on
// what else runs) and, where these are few, by KV head. Softmax is online; partial results of the
// chunks of a long context are merged in their order.
#pragma once

#include "paged.h"

namespace gs {

constexpr index_t kChunk = 512;  // tokens of context per piece of work
constexpr index_t kTile = 64;    // tokens whose scores are at hand at once

// The running softmax of one query head: maximum (in powers of two), sum, and weighted values in
// the order of load_pair.
template <class C>
struct Partial {
  C best, sum;
  C* values;
};

// Chunks of a sequence's context, and where its partial results lie.
struct DecodeWork {
  index_t seq, chunk, first_head, last_head;
  index_t partial;  // number of the chunk's first query head among partial results; -1: whole
};

template <class T>
class Decoder {
  using C = ComputeOf<T>;
  using V = Vec<C>;
  static constexpr int kPair = Storage<T>::kPair;
  static constexpr int W = kWidth<C>;

 public:
  explicit Decoder(const Call<T>& call)
      : call_(call), padded_(round_up(call.shape.head_dim, kPair)) {}

  // The work of the sequences with one new token; room for partial results is kept by the caller.
  std::vector<DecodeWork> plan() {
    const Step& step = call_.step;
    index_t pieces = 0;
    for (index_t seq = 0; seq < step.num_seqs; ++seq)
      if (step.query_lens[seq] == 1) pieces += ceil_div(step.totals[seq], kChunk);
    if (!pieces) return {};
    index_t num_kv = call_.shape.num_kv;
    index_t cuts = step.num_threads == 1
                       ? 1
                       : std::min(num_kv, ceil_div(2 * step.num_threads, pieces));
    index_t heads = ceil_div(num_kv, cuts);
    std::vector<DecodeWork> work;
    for (index_t seq = 0; seq < step.num_seqs; ++seq) {
      if (step.query_lens[seq] != 1) continue;
      index_t chunks = ceil_div(step.totals[seq], kChunk);
      if (chunks > 1) split_.push_back({seq, num_partials_});
      for (index_t chunk = 0; chunk < chunks; ++chunk) {
        for (index_t head = 0; head < num_kv; head += heads)
          work.push_back({seq, chunk, head, std::min(num_kv, head + heads),
                          chunks > 1 ? num_partials_ : -1});
        if (chunks > 1) num_partials_ += call_.shape.num_q;
      }
    }
    partials_ = scratch<C, 1>(num_partials_ * (padded_ + 2));
    return work;
  }

  void run(const DecodeWork& work) const {
    index_t total = call_.step.totals[work.seq], row = call_.step.starts[work.seq];
    index_t first = work.chunk * kChunk, last = std::min(total, first + kChunk);
    index_t group = call_.group(), head_dim = call_.shape.head_dim;
    index_t offsets[kChunk];
    token_offsets(call_, work.seq, first, last, offsets);
    C* queries = scratch<C, 2>(group * padded_);
    C* values = scratch<C, 3>(group * (padded_ + 2));
    for (index_t kv = work.first_head; kv < work.last_head; ++kv) {
      for (index_t g = 0; g < group; ++g) widen(call_.query(row, kv * group + g), queries + g * padded_);
      for (index_t g = 0; g < group;) {
        index_t count = group - g >= 4 ? 4 : group - g >= 2 ? 2 : 1;
        C* to = values + g * (padded_ + 2);
        const C* from = queries + g * padded_;
        if (count == 4) attend<4>(from, kv * head_dim, offsets, last - first, to);
        if (count == 2) attend<2>(from, kv * head_dim, offsets, last - first, to);
        if (count == 1) attend<1>(from, kv * head_dim, offsets, last - first, to);
        g += count;
      }
      for (index_t g = 0; g < group; ++g) {
        C* found = values + g * (padded_ + 2);
        index_t head = kv * group + g;
        if (work.partial < 0)
          finish(found, found[padded_ + 1], call_.output(row, head));
        else
          std::memcpy(partial(work.partial + head), found, (padded_ + 2) * sizeof(C));
      }
    }
  }

  // Contexts of several chunks: one sequence and query head each.
  index_t num_merges() const { return index_t(split_.size()) * call_.shape.num_q; }
  void merge(index_t number) const {
    const Split& split = split_[number / call_.shape.num_q];
    index_t head = number % call_.shape.num_q;
    index_t chunks = ceil_div(call_.step.totals[split.seq], kChunk);
    C* total = partial(split.partial + head);
    for (index_t chunk = 1; chunk < chunks; ++chunk) {
      const C* next = partial(split.partial + chunk * call_.shape.num_q + head);
      C best = std::max(total[padded_], next[padded_]);
      V kept = exp2_of<C>(splat<C>(total[padded_] - best));
      V added = exp2_of<C>(splat<C>(next[padded_] - best));
      for (index_t i = 0; i < padded_; i += W)
        store(total + i, load(total + i) * kept + load(next + i) * added);
      total[padded_ + 1] = total[padded_ + 1] * kept[0] + next[padded_ + 1] * added[0];
      total[padded_] = best;
    }
    finish(total, total[padded_ + 1], call_.output(call_.step.starts[split.seq], head));
  }

 private:
  struct Split {
    index_t seq, partial;
  };

  C* partial(index_t number) const { return partials_ + number * (padded_ + 2); }

  void widen(const T* from, C* to) const {
    for (index_t i = 0; i < padded_; i += kPair) {
      auto p = load_pair(from + i, call_.shape.head_dim - i);
      store(to + i, p.a);
      store(to + i + W, p.b);
    }
  }

  void finish(const C* values, C sum, T* out) const {
    C factor = C(1) / sum;
    index_t head_dim = call_.shape.head_dim;
    for (index_t i = 0; i < padded_; i += kPair)
      store_pair(out + i, head_dim - i, {load(values + i) * factor, load(values + i + W) * factor});
  }

  // G queries of one KV head over ``count`` tokens: ``values`` [G, padded + 2], behind each head's
  // weighted values its maximum and its sum.
  template <int G>
  void attend(const C* queries, index_t head_at, const index_t* offsets, index_t count,
              C* values) const {
    C best[G], sum[G];
    alignas(64) C shares[G * kTile];
    for (int g = 0; g < G; ++g) {
      best[g] = -kInfinity<C>;
      sum[g] = 0;
      std::memset(values + g * (padded_ + 2), 0, padded_ * sizeof(C));
    }
    for (index_t first = 0; first < count; first += kTile) {
      index_t n = std::min(kTile, count - first);
      score<G>(queries, head_at, offsets + first, n, shares);
      C kept[G];
      bool is_first = first == 0, is_scaled = false;
      for (int g = 0; g < G; ++g) {
        kept[g] = soften(shares + g * kTile, n, best[g], sum[g]);
        is_scaled |= kept[g] != C(1);
      }
      for (index_t d = 0; d < padded_; d += kPair)
        weigh<G>(head_at, d, offsets + first, n, shares, is_scaled && !is_first ? kept : nullptr, values);
    }
    for (int g = 0; g < G; ++g) {
      values[g * (padded_ + 2) + padded_] = best[g];
      values[g * (padded_ + 2) + padded_ + 1] = sum[g];
    }
  }

  // shares[G, kTile]: products of queries and keys, W tokens at a time.
  template <int G>
  void score(const C* queries, index_t head_at, const index_t* offsets, index_t n,
             C* shares) const {
    index_t head_dim = call_.shape.head_dim;
    C scale = C(call_.scale());
    for (index_t first = 0; first < n; first += W) {
      V sums[G][W];
      for (int t = 0; t < W; ++t) {
        // Beyond the end the last token again: its score is hidden later.
        index_t at = offsets[std::min(first + t, n - 1)] + head_at;
        const T* key = call_.cache.keys + at;
        for (index_t d = 0; d < padded_; d += kPair) __builtin_prefetch(call_.cache.values + at + d);
        V a[G], b[G];
        for (int g = 0; g < G; ++g) a[g] = b[g] = V{};
        for (index_t d = 0; d < padded_; d += kPair) {
          auto k = load_pair(key + d, head_dim - d);
          for (int g = 0; g < G; ++g) {
            a[g] += k.a * load(queries + g * padded_ + d);
            b[g] += k.b * load(queries + g * padded_ + d + W);
          }
        }
        for (int g = 0; g < G; ++g) sums[g][t] = a[g] + b[g];
      }
      for (int g = 0; g < G; ++g) store(shares + g * kTile + first, add_across(sums[g]) * scale);
    }
  }

  // Lane i: the sum of rows[i]'s lanes. Each round adds halves and so halves the rows.
  static V add_across(V* rows) {
    add_halves<1>(rows, std::make_index_sequence<W>());
    if constexpr (W > 2) add_halves<2>(rows, std::make_index_sequence<W>());
    if constexpr (W > 4) add_halves<4>(rows, std::make_index_sequence<W>());
    if constexpr (W > 8) add_halves<8>(rows, std::make_index_sequence<W>());
    return rows[0];
  }
  template <int Step, size_t... L>
  static void add_halves(V* rows, std::index_sequence<L...>) {
    for (int i = 0; i < W; i += 2 * Step) {
      V a = rows[i], b = rows[i + Step];
      rows[i] = pick<(int(L) & Step ? W + int(L) - Step : int(L))...>(a, b) +
                pick<(int(L) & Step ? W + int(L) : int(L) + Step)...>(a, b);
    }
  }

  // Scores of n tokens -> their shares, not yet divided by the sum; what older values keep.
  static C soften(C* scores, index_t n, C& best, C& sum) {
    index_t whole = n / W * W;
    if (whole < n) {
      for (index_t t = n; t < whole + W; ++t) scores[t] = -kInfinity<C>;
      whole += W;
    }
    V top = load(scores);
    for (index_t t = W; t < whole; t += W) top = max_of(top, load(scores + t));
    C now = std::max(best, max_lanes<C>(top));
    C kept = exp2_of<C>(splat<C>(best - now))[0];
    V added{};
    for (index_t t = 0; t < whole; t += W) {
      V share = exp2_of<C>(load(scores + t) - now);
      store(scores + t, share);
      added += share;
    }
    sum = sum * kept + sum_lanes<C>(added);
    best = now;
    return kept;
  }

  // A pair's width of values, weighted by shares; even and odd tokens apart, for more at once.
  template <int G>
  void weigh(index_t head_at, index_t d, const index_t* offsets, index_t n, const C* shares,
             const C* kept, C* values) const {
    const T* base = call_.cache.values + head_at + d;
    index_t width = call_.shape.head_dim - d;
    V a[2][G], b[2][G];
    for (int g = 0; g < G; ++g) {
      C* at = values + g * (padded_ + 2) + d;
      a[0][g] = load(at);
      b[0][g] = load(at + W);
      if (kept) {
        a[0][g] *= kept[g];
        b[0][g] *= kept[g];
      }
      a[1][g] = b[1][g] = V{};
    }
    for (index_t t = 0; t < n; t += 2) {
      for (int half = 0; half < 2 && t + half < n; ++half) {
        auto v = load_pair(base + offsets[t + half], width);
        for (int g = 0; g < G; ++g) {
          C share = shares[g * kTile + t + half];
          a[half][g] += v.a * share;
          b[half][g] += v.b * share;
        }
      }
    }
    for (int g = 0; g < G; ++g) {
      C* at = values + g * (padded_ + 2) + d;
      store(at, a[0][g] + a[1][g]);
      store(at + W, b[0][g] + b[1][g]);
    }
  }

  const Call<T>& call_;
  index_t padded_;
  std::vector<Split> split_;
  index_t num_partials_ = 0;
  C* partials_ = nullptr;
};

}  // namespace gs
