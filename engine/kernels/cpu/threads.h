// Work shared by torch's own OpenMP threads, so that a rank never has two sets of them.
//
// The runtime that torch has loaded is asked by name; without it the caller's thread does all.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>

#include "vectors.h"

namespace gs {

// ``GOMP_parallel``: libgomp's entry point, which LLVM's and Intel's libomp have too.
using OpenRegion = void (*)(void (*)(void*), void*, unsigned, unsigned);

constexpr const char* kRuntimes[] = {"libgomp.so.1", "libomp.so",    "libomp.so.5",
                                     "libiomp5.so",  "libomp.dylib", "@rpath/libomp.dylib"};

inline OpenRegion find_runtime() {
  for (const char* name : kRuntimes) {
    void* runtime = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (!runtime) continue;
    if (void* entry = dlsym(runtime, "GOMP_parallel"))
      return reinterpret_cast<OpenRegion>(entry);
  }
  return nullptr;
}
inline OpenRegion runtime() {
  static const OpenRegion found = find_runtime();
  return found;
}

// ``work(i)`` for every i below ``count``, each once, on up to ``threads`` threads.
template <class Work>
void share(int threads, index_t count, const Work& work) {
  OpenRegion open = runtime();
  index_t wanted = std::min<index_t>(threads, count);
  if (wanted <= 1 || !open) {
    for (index_t i = 0; i < count; ++i) work(i);
    return;
  }
  struct Region {
    const Work& work;
    index_t count;
    std::atomic<index_t> next{0};
  } region{work, count};
  auto body = [](void* data) {
    Region& mine = *static_cast<Region*>(data);
    for (index_t i; (i = mine.next.fetch_add(1, std::memory_order_relaxed)) < mine.count;)
      mine.work(i);
  };
  open(body, &region, unsigned(wanted), 0);
}

// Waking a thread costs more than this many elements of a row-wise operation.
constexpr index_t kElementsPerThread = 16 * 1024;

// ``work(first, last)`` over rows of ``width`` elements.
template <class Work>
void share_rows(int threads, index_t rows, index_t width, const Work& work) {
  index_t parts = std::min<index_t>(threads, rows * width / kElementsPerThread);
  if (parts <= 1) return work(index_t(0), rows);
  index_t each = ceil_div(rows, 4 * parts);  // a late thread then delays little
  share(int(parts), ceil_div(rows, each),
        [&](index_t i) { work(i * each, std::min(rows, (i + 1) * each)); });
}

}  // namespace gs
