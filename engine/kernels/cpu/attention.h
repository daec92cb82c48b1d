// A layer's attention from the fused projection to the heads' outputs, in one call.
#pragma once

#include "decode.h"
#include "prefill_amx.h"

namespace gs {

// Where the heads of one token go: its queries, and its slot of the cache.
template <class T>
struct Places {
  T *queries, *keys, *values;
};

// Takes in heads ``first`` to ``last`` of one token: norms and rotates queries and keys; keys and
// values go into their slot. qkv[num_q + 2 num_kv, head_dim], norms [num_q + num_kv, head_dim] or null.
template <class T>
void take_in(const Shape& shape, const T* qkv, const T* norms, const ComputeOf<T>* angles,
             const Places<T>& to, index_t first, index_t last) {
  const index_t head_dim = shape.head_dim, rotated = shape.num_q + shape.num_kv;
  T* normed = scratch<T, 30>(head_dim);
  for (index_t head = first; head < last; ++head) {
    const T* from = qkv + head * head_dim;
    if (head >= rotated) {
      std::memcpy(to.values + (head - rotated) * head_dim, from, head_dim * sizeof(T));
      continue;
    }
    if (norms) {
      norm_row(from, norms + head * head_dim, normed, head_dim, shape.eps);
      from = normed;
    }
    const bool is_query = head < shape.num_q;
    rotate_head(from, angles,
                is_query ? to.queries + head * head_dim : to.keys + (head - shape.num_q) * head_dim,
                head_dim);
  }
}

// The same of all heads of the step's token ``row``; ``qkv`` and ``queries`` [tokens, heads, head_dim].
template <class T>
void take_in_row(const Shape& shape, const Step& step, const Cache<T>& cache, const T* norms,
                 const T* qkv, T* queries, index_t row, index_t first, index_t last) {
  const index_t kv_size = shape.num_kv * shape.head_dim, q_size = shape.num_q * shape.head_dim;
  const index_t slot = step.slots[row] * kv_size;
  const auto* angles =
      static_cast<const ComputeOf<T>*>(shape.rope) + step.positions[row] * shape.head_dim;
  take_in(shape, qkv + row * (q_size + 2 * kv_size), norms, angles,
          {queries + row * q_size, cache.keys + slot, cache.values + slot}, first, last);
}

template <class T>
void prefill(const Call<T>& call, const PrefillWork& work) {
#ifdef GS_HAS_AMX
  if constexpr (std::is_same<T, BFloat16>::value)
    if (can_use_amx()) return AmxPrefill(call, work).run();
#endif
  Prefill<T>(call, work).run();
}

// Waking a thread costs more than this many products of a query and a key's element.
constexpr index_t kProductsPerThread = 64 * 1024;

// qkv[num_rows, num_q + 2 num_kv, head_dim] -> out[num_rows, num_q, head_dim]; rows behind the
// step's tokens are padding and come back as zeros.
template <class T>
void attend(const Shape& shape, const Step& step, Cache<T> cache, const T* norms, const T* qkv,
            T* out, index_t num_rows) {
  int threads = int(step.num_threads);
  index_t q_size = shape.num_q * shape.head_dim, kv_size = shape.num_kv * shape.head_dim;
  T* queries = scratch<T, 0>(step.num_tokens * q_size);
  const index_t heads = shape.num_q + 2 * shape.num_kv;
  share_rows(threads, step.num_tokens, heads * shape.head_dim, [&](index_t first, index_t last) {
    for (index_t row = first; row < last; ++row)
      take_in_row(shape, step, cache, norms, qkv, queries, row, 0, heads);
  });
  std::memset(out + step.num_tokens * q_size, 0,
              (num_rows - step.num_tokens) * q_size * sizeof(T));
  Call<T> call{shape, step, cache, queries, out};
  Decoder<T> decoder(call);
  std::vector<PrefillWork> prefills = plan_prefills(call);
  std::vector<DecodeWork> decodes = decoder.plan();
  index_t num_prefills = index_t(prefills.size());
  index_t products = 0;
  for (index_t seq = 0; seq < step.num_seqs; ++seq)
    products += step.query_lens[seq] * step.totals[seq] * kv_size;
  threads = int(std::min<index_t>(threads, 1 + products / kProductsPerThread));
  share(threads, num_prefills + index_t(decodes.size()), [&](index_t i) {
    if (i < num_prefills)
      prefill(call, prefills[i]);
    else
      decoder.run(decodes[i - num_prefills]);
  });
  share(threads, decoder.num_merges(), [&](index_t i) { decoder.merge(i); });
}

}  // namespace gs
