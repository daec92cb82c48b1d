// One new token per sequence, over its blocks where they lie.
//
// Work is cut by sequence, by chunk of context (of a fixed length, so that sums do not depend on
// what else runs) and, where these are few, by KV head. Softmax is online; partial results of the
// chunks of a long context are merged in their order.
#pragma once

#include "paged.h"

namespace gs {

constexpr index_t kChunk = 512;  // tokens of context per piece of work
constexpr index_t kTile = 64;    // tokens between two looks at the maxima
constexpr index_t kGroup = 16;   // tokens whose values are added at once

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
  // The same work, as ``planned``, of another layer.
  Decoder(const Decoder& planned, const Call<T>& call)
      : call_(call), padded_(planned.padded_), split_(planned.split_),
        num_partials_(planned.num_partials_), partials_(planned.partials_) {}

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
    partials_ = scratch<C, 1>(num_partials_ * stride_);
    return work;
  }

  // The usual head sizes of the usual types have code of their own, without ragged ends.
  void run(const DecodeWork& work) const {
    index_t head_dim = call_.shape.head_dim;
    if constexpr (std::is_same<T, float>::value || std::is_same<T, BFloat16>::value) {
      if (head_dim == 2 * kPair) return run_pairs<2>(work);
      if (head_dim == 4 * kPair) return run_pairs<4>(work);
    }
    run_pairs<0>(work);
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
    finish(total, call_.output(call_.step.starts[split.seq], head));
  }

 private:
  // All heads of a few tokens before the next tokens: so memory is read in its order.
  template <int Pairs>
  void run_pairs(const DecodeWork& work) const {
    index_t total = call_.step.totals[work.seq], row = call_.step.starts[work.seq];
    index_t first = work.chunk * kChunk, count = std::min(total - first, kChunk);
    index_t offsets[kChunk];
    token_offsets(call_, work.seq, first, first + count, offsets);
    index_t first_q = work.first_head * call_.group();
    Heads heads = open(work, row);
    for (index_t begin = 0; begin < count; begin += kTile) {
      index_t end = std::min(count, begin + kTile);
      for (index_t at = begin; at < end; at += W)
        for_groups(heads, [&](auto group, index_t q, index_t head_at) {
          score<group, Pairs>(heads, q, head_at, offsets + at, count - at, at - begin);
        });
      for (index_t q = 0; q < heads.count; ++q) soften(heads, q, end - begin);
      for (index_t at = begin; at < end; at += kGroup)
        for_groups(heads, [&](auto group, index_t q, index_t head_at) {
          weigh<group, Pairs>(heads, q, head_at, offsets + at, std::min(kGroup, end - at),
                              at - begin);
        });
    }
    for (index_t q = 0; q < heads.count; ++q) {
      if (work.partial < 0)
        finish(heads.found(q), call_.output(row, first_q + q));
      else
        std::memcpy(partial(work.partial + first_q + q), heads.found(q), stride_ * sizeof(C));
    }
  }

  struct Split {
    index_t seq, partial;
  };

  // The query heads of a piece of work: queries [count, padded] in the order of load_pair, scores
  // (later shares) [count, kTile], and what was found, [count, padded + 2]: weighted values, then
  // their maximum (in powers of two) and sum.
  struct Heads {
    index_t first_kv, last_kv, count, padded;
    C *queries, *scores, *values;
    C* found(index_t q) const { return values + q * (padded + 2); }
  };

  Heads open(const DecodeWork& work, index_t row) const {
    index_t count = (work.last_head - work.first_head) * call_.group();
    Heads heads{work.first_head, work.last_head, count, padded_,
                scratch<C, 2>(count * padded_), scratch<C, 3>(count * kTile),
                scratch<C, 4>(count * stride_)};
    for (index_t q = 0; q < count; ++q) {
      const T* from = call_.query(row, work.first_head * call_.group() + q);
      for (index_t d = 0; d < padded_; d += kPair) {
        auto p = load_pair(from + d, call_.shape.head_dim - d);
        store(heads.queries + q * padded_ + d, p.a);
        store(heads.queries + q * padded_ + d + W, p.b);
      }
      std::memset(heads.found(q), 0, stride_ * sizeof(C));
      heads.found(q)[padded_] = -kInfinity<C>;
    }
    return heads;
  }

  // ``work(G, q, head_at)`` for all query heads, up to four of one KV head at once.
  template <class Work>
  void for_groups(const Heads& heads, const Work& work) const {
    index_t group = call_.group();
    for (index_t kv = heads.first_kv; kv < heads.last_kv; ++kv) {
      index_t head_at = kv * call_.shape.head_dim, q = (kv - heads.first_kv) * group;
      index_t end = q + group;
      for (; q + 4 <= end; q += 4) work(std::integral_constant<int, 4>(), q, head_at);
      for (; q + 2 <= end; q += 2) work(std::integral_constant<int, 2>(), q, head_at);
      if (q < end) work(std::integral_constant<int, 1>(), q, head_at);
    }
  }

  C* partial(index_t number) const { return partials_ + number * stride_; }

  void finish(const C* found, T* out) const {
    C factor = C(1) / found[padded_ + 1];
    index_t head_dim = call_.shape.head_dim;
    for (index_t i = 0; i < padded_; i += kPair)
      store_pair(out + i, head_dim - i, {load(found + i) * factor, load(found + i + W) * factor});
  }

  // A pair of a head's elements from d on.
  template <int Pairs>
  Pair<C> load_at(const T* head, index_t d) const {
    return Pairs ? Storage<T>::load_pair(head + d) : load_pair(head + d, call_.shape.head_dim - d);
  }

  // Products of G queries from q on and the keys of the next W tokens, where as many are left ->
  // scores from ``to`` on.
  template <int G, int Pairs>
  void score(const Heads& heads, index_t q, index_t head_at, const index_t* offsets, index_t left,
             index_t to) const {
    const index_t width = Pairs ? Pairs * kPair : padded_;
    const C* queries = heads.queries + q * width;
    V sums[G][W];
    for (index_t t = 0; t < W; ++t) {
      // Beyond the end the last token again: its score is hidden later.
      index_t at = offsets[std::min(t, left - 1)] + head_at;
      fetch<Pairs, 2>(call_.cache.values + at);
      fetch<Pairs, 3>(call_.cache.keys + offsets[std::min(t + W, left - 1)] + head_at);
      const T* key = call_.cache.keys + at;
      V a[G], b[G];
      for (int g = 0; g < G; ++g) a[g] = b[g] = V{};
      for (index_t d = 0; d < width; d += kPair) {
        auto k = load_at<Pairs>(key, d);
        for (int g = 0; g < G; ++g) {
          a[g] += k.a * load(queries + g * width + d);
          b[g] += k.b * load(queries + g * width + d + W);
        }
      }
      for (int g = 0; g < G; ++g) sums[g][t] = a[g] + b[g];
    }
    C scale = C(call_.scale());
    for (int g = 0; g < G; ++g)
      store(heads.scores + (q + g) * kTile + to, add_across(sums[g]) * scale);
  }

  // Ask for a head's elements before they are needed: blocks lie anywhere, and the processor cannot
  // guess.
  template <int Pairs, int Nearness>
  void fetch(const T* head) const {
    const index_t bytes = (Pairs ? Pairs * kPair : call_.shape.head_dim) * sizeof(T);
    const char* at = reinterpret_cast<const char*>(head);
    for (index_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, Nearness);
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

  // Scores of n tokens -> their shares, not yet divided by the sum; what was found shrinks as the
  // maximum grows.
  void soften(const Heads& heads, index_t q, index_t n) const {
    C *scores = heads.scores + q * kTile, *found = heads.found(q);
    index_t whole = round_up(n, W);
    for (index_t t = n; t < whole; ++t) scores[t] = -kInfinity<C>;
    V top = load(scores);
    for (index_t t = W; t < whole; t += W) top = max_of(top, load(scores + t));
    C before = found[padded_], best = std::max(before, max_lanes<C>(top));
    V added{};
    for (index_t t = 0; t < whole; t += W) {
      V share = exp2_of<C>(load(scores + t) - best);
      store(scores + t, share);
      added += share;
    }
    C sum = sum_lanes<C>(added);
    if (best != before) {
      V kept = exp2_of<C>(splat<C>(before - best));
      for (index_t d = 0; d < padded_; d += W) store(found + d, load(found + d) * kept);
      sum += found[padded_ + 1] * kept[0];
    } else {
      sum += found[padded_ + 1];
    }
    found[padded_] = best;
    found[padded_ + 1] = sum;
  }

  // Add the values of n tokens, weighted by the shares from ``from`` on; even and odd tokens apart,
  // for more at once.
  template <int G, int Pairs>
  void weigh(const Heads& heads, index_t q, index_t head_at, const index_t* offsets, index_t n,
             index_t from) const {
    const C* shares = heads.scores + q * kTile + from;
    const index_t width = Pairs ? Pairs * kPair : padded_;
    const T* values = call_.cache.values + head_at;
    for (index_t d = 0; d < width; d += kPair) {
      V a[2][G], b[2][G];
      for (int g = 0; g < G; ++g) {
        a[0][g] = load(heads.found(q + g) + d);
        b[0][g] = load(heads.found(q + g) + d + W);
        a[1][g] = b[1][g] = V{};
      }
      auto add = [&](index_t t, V* a, V* b) {
        auto v = load_at<Pairs>(values + offsets[t], d);
        for (int g = 0; g < G; ++g) {
          a[g] += v.a * shares[g * kTile + t];
          b[g] += v.b * shares[g * kTile + t];
        }
      };
      index_t t = 0;
      for (; t + 2 <= n; t += 2) {
        add(t, a[0], b[0]);
        add(t + 1, a[1], b[1]);
      }
      if (t < n) add(t, a[0], b[0]);
      for (int g = 0; g < G; ++g) {
        store(heads.found(q + g) + d, a[0][g] + a[1][g]);
        store(heads.found(q + g) + d + W, b[0][g] + b[1][g]);
      }
    }
  }

  const Call<T>& call_;
  index_t padded_, stride_ = padded_ + 2;
  std::vector<Split> split_;
  index_t num_partials_ = 0;
  C* partials_ = nullptr;
};

}  // namespace gs
