// Threads that stay together over many pieces of work, and wait for each other in between: a region
// for each piece would wake and join them hundreds of times in a step.
#pragma once

#include "threads.h"

namespace gs {

constexpr int kMostThreads = 256;
constexpr int kPhases = 4;  // whose counters are apart; each is made ready two phases ahead

// What a runtime of OpenMP offers inside a region; null where one is missing.
struct TeamCalls {
  void (*meet)();
  int (*size)();
};
inline TeamCalls find_team_calls() {
  TeamCalls found{nullptr, nullptr};
  for (const char* name : kRuntimes) {
    void* runtime = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (!runtime) continue;
    found.meet = reinterpret_cast<void (*)()>(dlsym(runtime, "GOMP_barrier"));
    found.size = reinterpret_cast<int (*)()>(dlsym(runtime, "omp_get_num_threads"));
    if (found.meet && found.size) return found;
  }
  return {nullptr, nullptr};
}
inline TeamCalls team_calls() {
  static const TeamCalls found = find_team_calls();
  return found;
}

struct alignas(64) Counter {
  std::atomic<index_t> next;
};

// One thread's view of its team. All threads make the same calls in the same order.
class Team {
 public:
  Team() = default;
  Team(int id, int size, Counter* counters, void** told)
      : id_(id), size_(size), counters_(counters), told_(told) {}

  int size() const { return size_; }
  bool is_first() const { return id_ == 0; }

  // ``work(i)`` for every i below ``count``, each once; returns when all are done. Each thread has
  // a run of neighbours, and helps others when it is done: so memory is read in its order.
  template <class Work>
  void share(index_t count, const Work& work) {
    if (size_ == 1) {
      for (index_t i = 0; i < count; ++i) work(i);
      return;
    }
    Counter* mine = counters_ + phase_ % kPhases * size_;
    if (is_first())  // everybody is done with the phase that had these two phases ago
      for (int i = 0; i < size_; ++i) counters_[(phase_ + 2) % kPhases * size_ + i].next = 0;
    ++phase_;
    for (int i = 0; i < size_; ++i) {
      const int whose = (id_ + i) % size_;
      const index_t first = count * whose / size_, last = count * (whose + 1) / size_;
      if (first == last) continue;
      for (index_t at; (at = first + mine[whose].next.fetch_add(1, std::memory_order_relaxed)) < last;)
        work(at);
    }
    meet();
  }

  // ``work(first, last)`` over ``rows``.
  template <class Work>
  void share_rows(index_t rows, const Work& work) {
    const index_t each = ceil_div(rows, index_t(size_));
    share(ceil_div(rows, each), [&](index_t i) { work(i * each, std::min(rows, (i + 1) * each)); });
  }

  // ``work()`` on one thread, while the others wait.
  template <class Work>
  void once(const Work& work) {
    if (is_first()) work();
    meet();
  }

  // The memory that ``find()`` returns on one thread, on all of them.
  template <class Find>
  auto tell(const Find& find) {
    using Place = decltype(find());
    if (size_ == 1) return find();
    once([&] { *told_ = find(); });
    return static_cast<Place>(*told_);
  }

  void meet() const {
    if (size_ > 1) team_calls().meet();
  }

 private:
  int id_ = 0, size_ = 1, phase_ = 0;
  Counter* counters_ = nullptr;
  void** told_ = nullptr;
};

// ``body(team)`` on up to ``threads`` threads.
template <class Body>
void with_team(int threads, const Body& body) {
  OpenRegion open = runtime();
  threads = std::min(threads, kMostThreads);
  if (threads <= 1 || !open || !team_calls().meet) {
    Team alone;
    return body(alone);
  }
  struct Region {
    const Body& body;
    std::atomic<int> next_id{0};
    void* told = nullptr;
    Counter counters[kPhases * kMostThreads];
  } region{body};
  for (int i = 0; i < kPhases * threads; ++i) region.counters[i].next = 0;
  auto run = [](void* data) {
    Region& mine = *static_cast<Region*>(data);
    Team team(mine.next_id.fetch_add(1), team_calls().size(), mine.counters, &mine.told);
    mine.body(team);
  };
  open(run, &region, unsigned(threads), 0);
}

}  // namespace gs
