// A layer's attention from the fused projection to the heads' outputs, in one call.
#pragma once

#include "decode.h"
#include "prefill_amx.h"

namespace gs {

// Norm and rotate queries and keys of one token; keys and values go into their slot.
// qkv[num_q + 2 num_kv, head_dim], norms [num_q + num_kv, head_dim] or null.
template <class T>
void take_in(const Shape& shape, const T* qkv, const T* norms, const ComputeOf<T>* angles,
             T* queries, T* keys, T* values) {
  index_t head_dim = shape.head_dim;
  T* normed = scratch<T, 30>(head_dim);
  for (index_t head = 0; head < shape.num_q + shape.num_kv; ++head) {
    const T* from = qkv + head * head_dim;
    if (norms) {
      norm_row(from, norms + head * head_dim, normed, head_dim, shape.eps);
      from = normed;
    }
    bool is_query = head < shape.num_q;
    T* to = is_query ? queries + head * head_dim : keys + (head - shape.num_q) * head_dim;
    rotate_head(from, angles, to, head_dim);
  }
  std::memcpy(values, qkv + (shape.num_q + shape.num_kv) * head_dim,
              shape.num_kv * head_dim * sizeof(T));
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
  using C = ComputeOf<T>;
  int threads = int(step.num_threads);
  index_t q_size = shape.num_q * shape.head_dim, kv_size = shape.num_kv * shape.head_dim;
  T* queries = scratch<T, 0>(step.num_tokens * q_size);
  share_rows(threads, step.num_tokens, q_size + 2 * kv_size, [&](index_t first, index_t last) {
    for (index_t row = first; row < last; ++row) {
      index_t slot = step.slots[row] * kv_size;
      const C* angles = static_cast<const C*>(shape.rope) + step.positions[row] * shape.head_dim;
      take_in(shape, qkv + row * (q_size + 2 * kv_size), norms, angles, queries + row * q_size,
              cache.keys + slot, cache.values + slot);
    }
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
