// The same as prefill.h with bfloat16 products on the matrix tiles of AMX.
//
// A tile holds 16 rows of 64 bytes. Scores are keys [16, hd] times queries, pairs of dimensions
// side by side; outputs are values [16 dimensions, keys] times shares, pairs of keys side by side.
#pragma once

#include "prefill.h"

#if defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)
#define GS_HAS_AMX 1

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace gs {

// Whether the kernel lets this process use tiles.
inline bool can_use_amx() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool found = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return found;
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

class AmxPrefill {
  using V = Vec<float>;
  typedef uint32_t U __attribute__((vector_size(64)));
  static constexpr index_t kColumns = 16;           // queries of a panel
  static constexpr index_t kTileElements = 16 * 32;  // of bfloat16

 public:
  AmxPrefill(const Call<BFloat16>& call, const PrefillWork& work)
      : call_(call),
        work_(work),
        columns_(list_columns(call, work, kColumns)),
        padded_(round_up(call.shape.head_dim, 32)),
        num_panels_(index_t(columns_.size()) / kColumns) {}

  void run() {
    static const TileConfig config;
    _tile_loadconfig(&config);
    queries_ = scratch<uint32_t, 20>(num_panels_ * padded_ / 2 * kColumns);
    sums_ = scratch<float, 21>(num_panels_ * padded_ * kColumns);
    keys_ = scratch<BFloat16, 22>(kKeys * padded_);
    values_ = scratch<BFloat16, 23>(kKeys * padded_);
    scores_ = scratch<float, 24>(kKeys * kColumns);
    shares_ = scratch<uint32_t, 25>(kKeys / 2 * kColumns);
    softmax_.resize(num_panels_);
    for (index_t panel = 0; panel < num_panels_; ++panel) pack_queries(panel);
    index_t visible = columns_.back().position + 1;
    for (index_t first = 0; first < visible; first += kKeys) {
      pack_tile(first, std::min(kKeys, visible - first));
      for (index_t panel = 0; panel < num_panels_; ++panel) attend(panel, first);
    }
    for (index_t panel = 0; panel < num_panels_; ++panel) finish(panel);
    _tile_release();
  }

 private:
  // 32 elements, zeros beyond ``left``, as 16 pairs.
  static V load_pairs(const BFloat16* from, index_t left) {
    if (left >= 32) return bits_as<V>(load(reinterpret_cast<const float*>(from)));
    alignas(64) BFloat16 padded[32] = {};
    if (left > 0) std::memcpy(padded, from, left * sizeof(BFloat16));
    return load(reinterpret_cast<const float*>(padded));
  }

  // [pair of dimensions, query]
  void pack_queries(index_t panel) {
    for (index_t d = 0; d < padded_; d += 32) {
      V rows[16];
      for (index_t i = 0; i < kColumns; ++i) {
        const Column& at = columns_[panel * kColumns + i];
        rows[i] = load_pairs(call_.query(at.row, at.head) + d, call_.shape.head_dim - d);
      }
      transpose<float>(rows);
      uint32_t* to = queries_ + (panel * padded_ + d) / 2 * kColumns;
      for (index_t i = 0; i < 16; ++i) std::memcpy(to + i * kColumns, &rows[i], 64);
    }
  }

  // Keys in tiles of [16 keys, 32 dimensions], values of [16 dimensions, 32 keys], padded to 32
  // keys with zeros.
  void pack_tile(index_t first, index_t n) {
    index_t offsets[kKeys];
    token_offsets(call_, work_.seq, first, first + n, offsets);
    index_t head_dim = call_.shape.head_dim, head_at = work_.kv * head_dim;
    for (index_t t = 0; t < round_up(n, 32); t += 32) {
      for (index_t d = 0; d < padded_; d += 32) {
        V low[16], high[16];  // dimensions d.. and d + 16.. of pairs of keys
        for (int i = 0; i < 32; i += 2) {
          U pair[2] = {};
          for (int odd = 0; odd < 2; ++odd) {
            index_t token = t + i + odd;
            V key{}, value{};
            if (token < n) {
              index_t at = offsets[token] + head_at + d;
              key = load_pairs(call_.cache.keys + at, head_dim - d);
              value = load_pairs(call_.cache.values + at, head_dim - d);
            }
            index_t tile = token / 16 * (padded_ / 32) + d / 32;
            std::memcpy(keys_ + tile * kTileElements + token % 16 * 32, &key, 64);
            pair[odd] = bits_as<U>(value);
          }
          // Even dimensions of both keys side by side, then odd ones: pairs in the lanes.
          low[i / 2] = bits_as<V>((pair[0] & 0xffffu) | (pair[1] << 16));
          high[i / 2] = bits_as<V>((pair[0] >> 16) | (pair[1] & 0xffff0000u));
        }
        transpose<float>(low);
        transpose<float>(high);
        for (int i = 0; i < 16; ++i) {
          store_value_row(d + 2 * i, t, low[i]);
          store_value_row(d + 2 * i + 1, t, high[i]);
        }
      }
    }
  }
  void store_value_row(index_t d, index_t t, V row) {
    index_t tile = d / 16 * (kKeys / 32) + t / 32;
    std::memcpy(values_ + tile * kTileElements + d % 16 * 32, &row, 64);
  }

  void attend(index_t panel, index_t first) {
    index_t at = panel * kColumns;
    index_t last = columns_[at + kColumns - 1].position;
    if (last < first) return;
    index_t n = std::min(kKeys, last - first + 1);
    index_t whole = round_up(n, 32);
    index_t t = 0;
    for (; t + 64 <= whole; t += 64) score<64>(panel, t);
    if (t < whole) score<32>(panel, t);
    float* sums = sums_ + panel * padded_ * kColumns;
    soften(softmax_[panel], hide_later(at, first, whole), whole, sums, first == 0);
    index_t d = 0;
    for (; d + 64 <= padded_; d += 64) weigh<64>(d, whole / 32, sums, first != 0);
    if (d < padded_) weigh<32>(d, whole / 32, sums, first != 0);
  }

  // scores[32 or 64 keys, 16 queries]
  template <int Keys>
  void score(index_t panel, index_t t) {
    const uint32_t* queries = queries_ + panel * padded_ / 2 * kColumns;
    index_t depth = padded_ / 32;
    const BFloat16* keys = keys_ + t / 16 * depth * kTileElements;
    float* scores = scores_ + t * kColumns;
    _tile_zero(0);
    _tile_zero(1);
    if (Keys == 64) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (index_t k = 0; k < depth; ++k) {
      const BFloat16* at = keys + k * kTileElements;
      _tile_loadd(6, queries + k * 16 * kColumns, 64);
      _tile_loadd(4, at, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, at + depth * kTileElements, 64);
      _tile_dpbf16ps(1, 5, 6);
      if (Keys == 64) {
        _tile_loadd(4, at + 2 * depth * kTileElements, 64);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(5, at + 3 * depth * kTileElements, 64);
        _tile_dpbf16ps(3, 5, 6);
      }
    }
    _tile_stored(0, scores, 64);
    _tile_stored(1, scores + 16 * kColumns, 64);
    if (Keys == 64) {
      _tile_stored(2, scores + 32 * kColumns, 64);
      _tile_stored(3, scores + 48 * kColumns, 64);
    }
  }

  // sums[32 or 64 dimensions, 16 queries] (+)= values * shares
  template <int Dims>
  void weigh(index_t d, index_t depth, float* sums, bool is_added) {
    constexpr index_t kNext = kKeys / 32 * kTileElements;  // the next 16 dimensions
    const BFloat16* values = values_ + d / 16 * kNext;
    float* to = sums + d * kColumns;
    if (is_added) {
      _tile_loadd(0, to, 64);
      _tile_loadd(1, to + 16 * kColumns, 64);
      if (Dims == 64) {
        _tile_loadd(2, to + 32 * kColumns, 64);
        _tile_loadd(3, to + 48 * kColumns, 64);
      }
    } else {
      _tile_zero(0);
      _tile_zero(1);
      if (Dims == 64) {
        _tile_zero(2);
        _tile_zero(3);
      }
    }
    for (index_t k = 0; k < depth; ++k) {
      const BFloat16* at = values + k * kTileElements;
      _tile_loadd(7, shares_ + k * 16 * kColumns, 64);
      _tile_loadd(4, at, 64);
      _tile_dpbf16ps(0, 4, 7);
      _tile_loadd(5, at + kNext, 64);
      _tile_dpbf16ps(1, 5, 7);
      if (Dims == 64) {
        _tile_loadd(4, at + 2 * kNext, 64);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, at + 3 * kNext, 64);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, to, 64);
    _tile_stored(1, to + 16 * kColumns, 64);
    if (Dims == 64) {
      _tile_stored(2, to + 32 * kColumns, 64);
      _tile_stored(3, to + 48 * kColumns, 64);
    }
  }

  // Scores of keys behind a query become -inf; the maximum of every query.
  V hide_later(index_t at, index_t first, index_t whole) {
    Lanes<float>::I positions;
    for (int i = 0; i < 16; ++i) positions[i] = int32_t(columns_[at + i].position - first);
    index_t shown = std::min<index_t>(whole, positions[0] + 1);
    V tops[4];
    for (V& top : tops) top = splat<float>(-kInfinity<float>);
    index_t t = 0;
    for (; t + 4 <= shown; t += 4)
      for (int i = 0; i < 4; ++i) tops[i] = max_of(tops[i], load(scores_ + (t + i) * kColumns));
    for (; t < whole; ++t) {
      float* score = scores_ + t * kColumns;
      V hidden = positions < int32_t(t) ? splat<float>(-kInfinity<float>) : load(score);
      store(score, hidden);
      tops[0] = max_of(tops[0], hidden);
    }
    return max_of(max_of(tops[0], tops[1]), max_of(tops[2], tops[3]));
  }

  void soften(Softmax<float>& softmax, V top, index_t whole, float* sums, bool is_first) {
    float scale = float(call_.scale());
    V best = max_of(softmax.best, top * scale), added[2] = {};
    for (index_t t = 0; t < whole; t += 2) {
      V even = exp2_of<float, 4>(load(scores_ + t * kColumns) * scale - best);
      V odd = exp2_of<float, 4>(load(scores_ + (t + 1) * kColumns) * scale - best);
      added[0] += even;
      added[1] += odd;
      U pairs = ((bits_as<U>(even) + 0x8000u) >> 16) | ((bits_as<U>(odd) + 0x8000u) & 0xffff0000u);
      std::memcpy(shares_ + t / 2 * kColumns, &pairs, 64);
    }
    V kept = exp2_of<float>(softmax.best - best);
    softmax.sum = softmax.sum * kept + (added[0] + added[1]);
    auto is_lower = softmax.best != best;
    bool is_moved = false;
    for (int i = 0; i < 16; ++i) is_moved |= is_lower[i] != 0;
    softmax.best = best;
    if (is_first || !is_moved) return;
    for (index_t d = 0; d < padded_; ++d)
      store(sums + d * kColumns, load(sums + d * kColumns) * kept);
  }

  void finish(index_t panel) {
    index_t num_rows = work_.count * call_.group();
    V factor = 1.0f / softmax_[panel].sum;
    const float* sums = sums_ + panel * padded_ * kColumns;
    for (index_t d = 0; d < padded_; d += 32) {
      V rows[2][16];
      for (int part = 0; part < 2; ++part) {
        for (int i = 0; i < 16; ++i)
          rows[part][i] = load(sums + (d + part * 16 + i) * kColumns) * factor;
        transpose<float>(rows[part]);
      }
      for (index_t i = 0; i < kColumns; ++i) {
        index_t column = panel * kColumns + i;
        if (column >= num_rows) break;
        BFloat16* out = call_.output(columns_[column].row, columns_[column].head) + d;
        index_t left = call_.shape.head_dim - d;
        store_pair(out, left, Storage<BFloat16>::in_order({rows[0][i], rows[1][i]}));
      }
    }
  }

  const Call<BFloat16>& call_;
  const PrefillWork& work_;
  std::vector<Column> columns_;
  index_t padded_, num_panels_;
  uint32_t *queries_, *shares_;
  BFloat16 *keys_, *values_;
  float *sums_, *scores_;
  std::vector<Softmax<float>> softmax_;
};

}  // namespace gs
#endif
