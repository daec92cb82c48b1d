// What attention is told: the model's numbers, the step's tables and one layer's cache.
#pragma once

#include <vector>

#include "rows.h"

namespace gs {

// The same for every step. ``engine/kernels/cpu_library.py`` has the fields of both.
struct Shape {
  const void* rope;  // [positions, head_dim]: cosines beside sines, in what one computes in
  index_t head_dim, num_q, num_kv, block_size;
  double eps;
};

// A step's sequences: S of them, block tables [S, table_width].
struct Step {
  const index_t *query_lens, *starts, *totals, *positions, *slots;
  const int32_t* block_tables;
  index_t num_seqs, table_width, num_tokens, num_threads;
};

// A layer's cache, [num_blocks, block_size, num_kv, head_dim] twice.
template <class T>
struct Cache {
  T *keys, *values;
};

// Everything of one call. ``queries`` and ``out`` [rows, num_q, head_dim].
template <class T>
struct Call {
  const Shape& shape;
  const Step& step;
  Cache<T> cache;
  const T* queries;
  T* out;

  index_t group() const { return shape.num_q / shape.num_kv; }
  index_t token_stride() const { return shape.num_kv * shape.head_dim; }
  const T* query(index_t row, index_t head) const {
    return queries + (row * shape.num_q + head) * shape.head_dim;
  }
  T* output(index_t row, index_t head) const {
    return out + (row * shape.num_q + head) * shape.head_dim;
  }
  // log2(e) / sqrt(hd): scores are kept in powers of two.
  double scale() const { return 1.4426950408889634 / std::sqrt(double(shape.head_dim)); }
};

// Elements from the cache's begin to tokens ``first`` to ``last`` of a sequence, head 0.
template <class T>
void token_offsets(const Call<T>& call, index_t seq, index_t first, index_t last,
                   index_t* offsets) {
  const int32_t* table = call.step.block_tables + seq * call.step.table_width;
  index_t size = call.shape.block_size, stride = call.token_stride();
  for (index_t token = first; token < last;) {
    index_t block = token / size, end = std::min(last, (block + 1) * size);
    index_t at = (table[block] * size + token % size) * stride;
    for (; token < end; ++token, at += stride) *offsets++ = at;
  }
}

// Memory of a thread that lives on, so that a call allocates nothing.
template <class T, int Purpose>
T* scratch(size_t count) {
  static thread_local std::vector<T> kept;
  constexpr size_t kSlack = 64 / sizeof(T);
  if (kept.size() < count + kSlack) kept.resize(count + kSlack);
  auto address = reinterpret_cast<uintptr_t>(kept.data());
  return reinterpret_cast<T*>((address + 63) / 64 * 64);
}

}  // namespace gs
