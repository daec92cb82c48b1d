// Collectives over shared memory between the ranks of one host; driven by ctypes (shm_native.py).
// The memory is laid out by shm_layout.py; the pure Python version is shm_python.py.
//
// One sequence number per collective chunk. A member writes its part into its slot (sequence & 1),
// publishes the sequence, and waits for every other member's. Two slots are enough without a
// second barrier: whoever publishes s has seen everyone publish s-1, and so finish reading s-2.

#include <cstdint>
#include <cstring>
#include <new>
#include <sched.h>
#include <time.h>

namespace {

constexpr uint64_t kLine = 64;
constexpr uint64_t kYieldNs = 300'000;   // after spinning, yield for this long, then sleep
constexpr long kSleepNs = 50'000;
constexpr uint64_t kHeader = 16;         // bytes before each message of a ring

enum Status { kOk = 0, kTimeout = 1, kAborted = 2, kMismatch = 3 };
enum Op : uint64_t { kAllReduce = 1, kAllGather = 2, kAllToAll = 3, kBarrier = 4 };

struct Group {
  char* base;
  char* counters;
  char* slots;
  char* rings;
  uint64_t slot_bytes, ring_bytes, timeout_ns, sequence;
  int size, rank, spins;

  uint64_t* line(int member) const { return reinterpret_cast<uint64_t*>(counters + member * kLine); }
  char* slot(int member) const {
    return slots + (2 * static_cast<uint64_t>(member) + (sequence & 1)) * slot_bytes;
  }
  char* ring(int source, int target) const {
    return rings + (static_cast<uint64_t>(source) * size + target) * (2 * kLine + ring_bytes);
  }
};

uint64_t load(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
void store(uint64_t* word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000u + t.tv_nsec;
}

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int failure(Status status, uint64_t who) { return static_cast<int>(status | who << 8); }

// Until *word >= target: spin, then yield, then sleep, so that more ranks than cores still work.
int wait_for(const Group& g, const uint64_t* word, uint64_t target, int peer) {
  for (int i = 0; i < g.spins; ++i) {
    if (load(word) >= target) return kOk;
    relax();
  }
  const uint64_t start = now_ns();
  while (load(word) < target) {
    if (uint64_t blamed = load(reinterpret_cast<uint64_t*>(g.base))) return failure(kAborted, blamed);
    const uint64_t waited = now_ns() - start;
    if (waited > g.timeout_ns) return failure(kTimeout, peer);
    if (waited < kYieldNs) {
      sched_yield();
    } else {
      timespec nap{0, kSleepNs};
      nanosleep(&nap, nullptr);
    }
  }
  return kOk;
}

// Publish my slot of the current sequence and wait until every member has published its own.
int meet(Group& g, Op op, uint64_t bytes) {
  const uint64_t tag = op << 56 | bytes;
  uint64_t* mine = g.line(g.rank);
  mine[1 + (g.sequence & 1)] = tag;
  store(mine, g.sequence);
  for (int j = 0; j < g.size; ++j) {
    if (j == g.rank) continue;
    if (int status = wait_for(g, g.line(j), g.sequence, j)) return status;
    if (g.line(j)[1 + (g.sequence & 1)] != tag) return failure(kMismatch, j);
  }
  return kOk;
}

float from_bf16(uint16_t x) {
  uint32_t bits = static_cast<uint32_t>(x) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

uint16_t to_bf16(float f) {  // round to nearest even; any NaN becomes the quiet one
  uint32_t bits;
  memcpy(&bits, &f, 4);
  const uint16_t rounded = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  return f != f ? 0x7fc0 : rounded;
}

float from_fp16(uint16_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000) << 16, body = x & 0x7fff;
  float f;
  if (body >= 0x7c00) {  // infinity or NaN
    const uint32_t bits = 0x7f800000u | (body & 0x3ff) << 13;
    memcpy(&f, &bits, 4);
  } else {  // as a float, the fp16 exponent is 112 too small; the product is exact, subnormals too
    const uint32_t bits = body << 13;
    memcpy(&f, &bits, 4);
    f *= 0x1p112f;
  }
  uint32_t bits;
  memcpy(&bits, &f, 4);
  bits |= sign;
  memcpy(&f, &bits, 4);
  return f;
}

uint16_t to_fp16(float f) {  // round to nearest even
  uint32_t bits;
  memcpy(&bits, &f, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | 0x7e00;
  if (bits >= 0x477ff000u) return sign | 0x7c00;  // 65520 and above round to infinity
  if (bits < 0x38800000u) {  // subnormal: the adder rounds at the place of 2^-24
    float magnitude, magic = 0.5f;
    memcpy(&magnitude, &bits, 4);
    magnitude += magic;
    memcpy(&bits, &magnitude, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  bits += 0xfff + ((bits >> 13) & 1);
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u) >> 13));
}

// Sums in group order; the same on every member.
template <typename T>
void sum(const Group& g, char* out, uint64_t count) {
  T* __restrict__ total = reinterpret_cast<T*>(out);
  const T* __restrict__ a = reinterpret_cast<const T*>(g.slot(0));
  const T* __restrict__ b = reinterpret_cast<const T*>(g.slot(1));
  for (uint64_t i = 0; i < count; ++i) total[i] = a[i] + b[i];
  for (int j = 2; j < g.size; ++j) {
    const T* __restrict__ next = reinterpret_cast<const T*>(g.slot(j));
    for (uint64_t i = 0; i < count; ++i) total[i] += next[i];
  }
}

// 16-bit floats are summed in fp32 and rounded once.
template <float (*widen)(uint16_t), uint16_t (*narrow)(float)>
void sum_halves(const Group& g, char* out, uint64_t count) {
  constexpr uint64_t kBlock = 1024;
  float total[kBlock];
  uint16_t* result = reinterpret_cast<uint16_t*>(out);
  for (uint64_t start = 0; start < count; start += kBlock) {
    const uint64_t length = count - start < kBlock ? count - start : kBlock;
    for (int j = 0; j < g.size; ++j) {
      const uint16_t* next = reinterpret_cast<const uint16_t*>(g.slot(j)) + start;
      if (j == 0) {
        for (uint64_t i = 0; i < length; ++i) total[i] = widen(next[i]);
      } else {
        for (uint64_t i = 0; i < length; ++i) total[i] += widen(next[i]);
      }
    }
    for (uint64_t i = 0; i < length; ++i) result[start + i] = narrow(total[i]);
  }
}

struct SumKind {
  void (*add)(const Group&, char*, uint64_t);
  uint64_t item_bytes;
};

// In the order of DTYPE_CODES in shm_native.py.
const SumKind kSums[] = {
    {sum<float>, 4},   {sum<double>, 8},  {sum_halves<from_bf16, to_bf16>, 2},
    {sum_halves<from_fp16, to_fp16>, 2},  {sum<int32_t>, 4}, {sum<int64_t>, 8},
};

// Bytes into a ring (or out of it), waiting for room (or for data) as often as needed.
struct Cursor {
  Group& g;
  char* ring;
  uint64_t* written;
  uint64_t* read;
  int peer;

  Cursor(Group& group, int source, int target, int other)
      : g(group), ring(group.ring(source, target)), written(reinterpret_cast<uint64_t*>(ring)),
        read(reinterpret_cast<uint64_t*>(ring + kLine)), peer(other) {}

  uint64_t run(uint64_t at, uint64_t wanted) const {
    const uint64_t to_end = g.ring_bytes - at % g.ring_bytes;
    return wanted < to_end ? wanted : to_end;
  }

  int push(const char* data, uint64_t bytes) {
    uint64_t at = *written;
    while (bytes) {
      if (int status = wait_for(g, read, at + 1 > g.ring_bytes ? at + 1 - g.ring_bytes : 0, peer)) {
        return status;
      }
      const uint64_t room = g.ring_bytes - (at - load(read));
      const uint64_t length = run(at, bytes < room ? bytes : room);
      memcpy(ring + 2 * kLine + at % g.ring_bytes, data, length);
      store(written, at += length);
      data += length;
      bytes -= length;
    }
    return kOk;
  }

  int pull(char* data, uint64_t bytes) {
    uint64_t at = *read;
    while (bytes) {
      if (int status = wait_for(g, written, at + 1, peer)) return status;
      const uint64_t there = load(written) - at;
      const uint64_t length = run(at, bytes < there ? bytes : there);
      memcpy(data, ring + 2 * kLine + at % g.ring_bytes, length);
      store(read, at += length);
      data += length;
      bytes -= length;
    }
    return kOk;
  }
};

}  // namespace

extern "C" {

Group* gs_open(char* base, uint64_t counters, uint64_t slots, uint64_t rings, uint64_t slot_bytes,
               uint64_t ring_bytes, uint64_t timeout_ns, int size, int rank, int spins) {
  return new (std::nothrow) Group{base, base + counters, base + slots, base + rings, slot_bytes,
                                  ring_bytes, timeout_ns, 0, size, rank, spins};
}

void gs_close(Group* g) { delete g; }

int gs_all_reduce(Group* g, char* x, uint64_t count, int dtype) {
  const SumKind kind = kSums[dtype];
  const uint64_t most = g->slot_bytes / kind.item_bytes, total = count * kind.item_bytes;
  do {
    const uint64_t chunk = count < most ? count : most;
    ++g->sequence;
    memcpy(g->slot(g->rank), x, chunk * kind.item_bytes);
    if (int status = meet(*g, kAllReduce, total)) return status;
    kind.add(*g, x, chunk);
    x += chunk * kind.item_bytes;
    count -= chunk;
  } while (count);
  return kOk;
}

int gs_all_gather(Group* g, const char* x, char* out, uint64_t bytes) {
  uint64_t done = 0;
  do {
    const uint64_t left = bytes - done, chunk = left < g->slot_bytes ? left : g->slot_bytes;
    ++g->sequence;
    memcpy(g->slot(g->rank), x + done, chunk);
    if (int status = meet(*g, kAllGather, bytes)) return status;
    for (int j = 0; j < g->size; ++j) memcpy(out + j * bytes + done, g->slot(j), chunk);
    done += chunk;
  } while (done < bytes);
  return kOk;
}

// `bytes` per block: block j of x goes to member j.
int gs_all_to_all(Group* g, const char* x, char* out, uint64_t bytes) {
  const uint64_t most = g->slot_bytes / g->size / kLine * kLine;
  uint64_t done = 0;
  do {
    const uint64_t left = bytes - done, chunk = left < most ? left : most;
    ++g->sequence;
    for (int j = 0; j < g->size; ++j) {
      if (j != g->rank) memcpy(g->slot(g->rank) + j * most, x + j * bytes + done, chunk);
    }
    memcpy(out + g->rank * bytes + done, x + g->rank * bytes + done, chunk);
    if (int status = meet(*g, kAllToAll, bytes)) return status;
    for (int j = 0; j < g->size; ++j) {
      if (j != g->rank) memcpy(out + j * bytes + done, g->slot(j) + g->rank * most, chunk);
    }
    done += chunk;
  } while (done < bytes);
  return kOk;
}

int gs_barrier(Group* g) {
  ++g->sequence;
  return meet(*g, kBarrier, 0);
}

int gs_send(Group* g, const char* x, uint64_t bytes, int target) {
  Cursor cursor(*g, g->rank, target, target);
  const uint64_t header[2] = {bytes, 0};
  if (int status = cursor.push(reinterpret_cast<const char*>(header), kHeader)) return status;
  return cursor.push(x, bytes);
}

int gs_recv(Group* g, char* out, uint64_t bytes, int source) {
  Cursor cursor(*g, source, g->rank, source);
  uint64_t header[2];
  if (int status = cursor.pull(reinterpret_cast<char*>(header), kHeader)) return status;
  if (header[0] != bytes) return failure(kMismatch, source);
  return cursor.pull(out, bytes);
}
}
