// All layers of a step of one new token per sequence in one call, by one team of threads: at one
// row Python and torch would take a fifth of the time.
//
// A piece of work is done by the functions that do it alone elsewhere, so that answers are the same.
#pragma once

#include <chrono>
#include <numeric>

#include "../kernels/cpu/attention.h"
#include "int8_team.h"

// engine/parallel/native_layers.py has the fields of all three.
struct Piece {
  const void *weight, *bias;  // bias [outputs] or null
  const float* scales;        // [outputs] of an int8 weight, else null
  int64_t block, outputs, inputs, pitch;
  int64_t digits;  // of rows that meet an int8 weight; 0: as many as keep numbers whole
};

// Pieces lie one behind the other: of outputs side by side, of inputs to be summed.
struct LayerFields {
  const void *input_norm, *post_norm, *qk_norm;
  void *keys, *values;
  const Piece *qkv, *o, *gate_up, *down;
};

// ``reduce`` sums over the tensor group, null where the rank is alone; ``status`` 0 is success.
struct Stage {
  const gs::Shape* shape;
  const LayerFields* layers;
  int64_t num_layers, width, num_qkv, num_o, num_gate_up, num_down, ffn_blocks;
  int (*reduce)(void* group, void* x, uint64_t count, int dtype);
  void* group;
  int64_t reduce_dtype, is_int8;
  const void *const *o_bias, *const *down_bias;  // of each layer, added to sums over a group; or null
};

namespace {

constexpr int kNoMemory = -1;

#ifdef __AVX512F__
template <class T>
using BitsOf = typename std::conditional<sizeof(T) == 4, float, uint16_t>::type;

// T of layers: float or gs::BFloat16. P, what multiplies: Product<BitsOf<T>> or int8::Product<T>.
template <class T, class P>
class StepOfLayers {
  // Of so few rows each thread keeps the residual stream and its norm for itself: to compute them
  // takes less time than to wait for whoever does.
  static constexpr int64_t kMostOwned = 4;
  // The residual stream, and its norm that products read.
  struct Rows {
    T *x, *normed;
  };

 public:
  StepOfLayers(const Stage& stage, const gs::Step& step, void* x, int64_t rows)
      : stage_(stage), shape_(*stage.shape), step_(step), rows_(rows), x_(static_cast<T*>(x)),
        q_size_(shape_.num_q * shape_.head_dim), kv_size_(shape_.num_kv * shape_.head_dim),
        wide_width_(outputs_of(stage.layers->gate_up, stage.num_gate_up)),
        ffn_(wide_width_ / 2 / stage.ffn_blocks),
        // Begun on lines of the cache, so that threads do not write to one line.
        normed_(gs::scratch<T, 60>(rows * stage.width)),
        qkv_(gs::scratch<T, 61>(rows * (q_size_ + 2 * kv_size_))),
        queries_(gs::scratch<T, 62>(rows * q_size_)),
        attended_(gs::scratch<T, 63>(rows * q_size_)),
        part_(gs::scratch<T, 64>(rows * stage.width)),
        wide_(gs::scratch<T, 65>(rows * wide_width_)),
        gated_(gs::scratch<T, 66>(rows * wide_width_ / 2)),
        call_{shape_, step_, {nullptr, nullptr}, queries_, attended_}, planned_(call_) {}

  // ``reduce_ns``: time in the sums over the group is added.
  int run(int64_t* reduce_ns) {
    work_ = planned_.plan();
    takes_heads_ = all_of(stage_.layers->qkv, stage_.num_qkv, [&](const P& p) {
      return p.outputs % heads_width(p) == 0;
    });
    gates_ = all_of(stage_.layers->gate_up, stage_.num_gate_up, [&](const P& p) {
      return ffn_ % width_of(p) == 0 && p.outputs % (2 * ffn_) == 0;
    });
    gs::with_team(int(step_.num_threads), [&](gs::Team& team) {
      const Rows rows = rows_of(team);
      for (int64_t i = 0; i < stage_.num_layers && !status_; ++i) run_layer(team, rows, i);
      if (!status_) finish(team, rows);
    });
    *reduce_ns += reduce_ns_;
    return status_;
  }

 private:
  static int64_t outputs_of(const Piece* pieces, int64_t count) {
    int64_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += pieces[i].outputs;
    return sum;
  }

  // Whether a thread multiplies any outputs of each of the pieces, and they fit.
  template <class Fits>
  bool all_of(const Piece* pieces, int64_t count, const Fits& fits) const {
    return std::all_of(pieces, pieces + count, [&](const Piece& piece) {
      const auto p = product(piece, normed_, stage_.width, part_, stage_.width);
      return are_few(p) && fits(p);
    });
  }

  // The fewest outputs that are both multiplied together and whole heads.
  int64_t heads_width(const P& p) const {
    return std::lcm(width_of(p), shape_.head_dim);
  }

  T* at(T* rows, int64_t row) const { return rows + row * stage_.width; }

  template <class Work>
  void each_row(gs::Team& team, const Work& work) const {
    team.share_rows(rows_, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) work(row);
    });
  }

  Rows rows_of(const gs::Team& team) const {
    if (team.size() == 1 || rows_ > kMostOwned) return {x_, normed_};
    const int64_t count = rows_ * stage_.width;
    const Rows own{gs::scratch<T, 67>(count), gs::scratch<T, 68>(count)};
    std::memcpy(own.x, x_, count * sizeof(T));
    return own;
  }

  void run_layer(gs::Team& team, const Rows& rows, int64_t number) {
    const LayerFields& layer = stage_.layers[number];
    norm(team, rows, layer.input_norm, number > 0);
    project(team, rows, layer);
    attend(team, layer);
    sum(team, layer.o, stage_.num_o, attended_, q_size_, stage_.o_bias, number);
    if (status_) return;
    norm(team, rows, layer.post_norm, true);
    feed(team, rows, layer);
    sum(team, layer.down, stage_.num_down, gated_, wide_width_ / 2, stage_.down_bias, number);
  }

  // The block's output joins the residual stream, whose norm the next product reads.
  void norm(gs::Team& team, const Rows& rows, const void* weight, bool has_part) const {
    auto one = [&](int64_t row) {
      if (has_part) gs::add_row(at(rows.x, row), at(part_, row), stage_.width);
      gs::norm_row(at(rows.x, row), static_cast<const T*>(weight), at(rows.normed, row),
                   stage_.width, shape_.eps);
    };
    if (rows.x == x_) return each_row(team, one);
    for (int64_t row = 0; row < rows_; ++row) one(row);
  }

  // The last block's output joins it, where the caller reads it.
  void finish(gs::Team& team, const Rows& rows) const {
    each_row(team, [&](int64_t row) {
      if (rows.x != x_) std::memcpy(at(x_, row), at(rows.x, row), stage_.width * sizeof(T));
      gs::add_row(at(x_, row), at(part_, row), stage_.width);
    });
  }

  P product(const Piece& piece, const T* x, int64_t x_stride, T* out, int64_t out_stride) const {
    if constexpr (std::is_same<P, Product<BitsOf<T>>>::value) {
      auto bits = [](const void* p) { return static_cast<const BitsOf<T>*>(p); };
      return {bits(piece.weight), bits(x), bits(piece.bias), nullptr,
              reinterpret_cast<BitsOf<T>*>(out), piece.block, piece.outputs, piece.inputs, rows_,
              x_stride, out_stride, piece.pitch};
    } else {
      return {static_cast<const int8_t*>(piece.weight), piece.scales, x,
              static_cast<const T*>(piece.bias), nullptr, out, piece.outputs, piece.inputs, rows_,
              x_stride, out_stride, piece.pitch,
              piece.digits ? int(piece.digits) : int8::kWhole<T>};
    }
  }

  // Queries, keys and values. Who has multiplied whole heads takes them in.
  void project(gs::Team& team, const Rows& rows, const LayerFields& layer) {
    const int64_t width = q_size_ + 2 * kv_size_, head_dim = shape_.head_dim;
    int64_t done = 0;
    for (int64_t i = 0; i < stage_.num_qkv; done += layer.qkv[i++].outputs) {
      const auto p = product(layer.qkv[i], rows.normed, stage_.width, qkv_ + done, width);
      if (!takes_heads_) {
        multiply(p, team);
        continue;
      }
      with_range(p, [&](const auto& multiply) {
        share_outputs(team, p.outputs, heads_width(p), [&](int64_t begin, int64_t end) {
          multiply(p, begin, end);
          for (int64_t row = 0; row < rows_; ++row)
            take_in(layer, row, (done + begin) / head_dim, (done + end) / head_dim);
        });
      });
    }
    if (takes_heads_) return;
    each_row(team, [&](int64_t row) { take_in(layer, row, 0, width / head_dim); });
  }

  void take_in(const LayerFields& layer, int64_t row, int64_t first, int64_t last) const {
    gs::take_in_row(shape_, step_, cache_of(layer), static_cast<const T*>(layer.qk_norm), qkv_,
                    queries_, row, first, last);
  }

  static gs::Cache<T> cache_of(const LayerFields& layer) {
    return {static_cast<T*>(layer.keys), static_cast<T*>(layer.values)};
  }

  // Gate and up. Who has multiplied outputs of both with the same numbers gates them.
  void feed(gs::Team& team, const Rows& rows, const LayerFields& layer) {
    T *wide = wide_, *gated = gated_;
    for (int64_t i = 0; i < stage_.num_gate_up; ++i) {
      const auto p = product(layer.gate_up[i], rows.normed, stage_.width, wide, wide_width_);
      gates_ ? multiply_gated(team, p, wide, gated) : multiply(p, team);
      wide += p.outputs;
      gated += p.outputs / 2;
    }
    if (gates_) return;
    team.share_rows(rows_ * stage_.ffn_blocks, [&](int64_t first, int64_t last) {
      gs::silu_mul(wide_ + 2 * first * ffn_, gated_ + first * ffn_, last - first, 1, ffn_, 1);
    });
  }

  // Outputs of ``p`` are blocks of [gate, up], ``ffn_`` of each: wide [rows, blocks, 2, ffn_] ->
  // gated [rows, blocks, ffn_].
  void multiply_gated(gs::Team& team, const P& p, const T* wide, T* gated) const {
    const int64_t blocks = p.outputs / (2 * ffn_);
    const int64_t each = outputs_each(team, blocks * ffn_, width_of(p));
    const int64_t parts = gs::ceil_div(ffn_, each);
    with_range(p, [&](const auto& multiply) {
      team.share(blocks * parts, [&](int64_t i) {
        const int64_t block = i / parts, begin = i % parts * each;
        const int64_t end = std::min(ffn_, begin + each), gate = 2 * block * ffn_;
        multiply(p, gate + begin, gate + end);
        multiply(p, gate + ffn_ + begin, gate + ffn_ + end);
        for (int64_t row = 0; row < rows_; ++row) {
          const T* from = wide + row * wide_width_ + gate + begin;
          gs::gate_row(from, from + ffn_, gated + row * wide_width_ / 2 + block * ffn_ + begin,
                       end - begin);
        }
      });
    });
  }

  void sum(gs::Team& team, const Piece* pieces, int64_t count, const T* x, int64_t x_stride,
           const void* const* biases, int64_t layer) {
    for (int64_t i = 0; i < count; x += pieces[i++].inputs) {
      auto p = product(pieces[i], x, x_stride, part_, stage_.width);
      if (i) p.total = p.out;
      multiply(p, team);
    }
    if (!stage_.reduce) return;
    team.once([&] { reduce(biases ? static_cast<const T*>(biases[layer]) : nullptr); });
  }

  void reduce(const T* bias) {
    const auto begun = std::chrono::steady_clock::now();
    status_ = stage_.reduce(stage_.group, part_, uint64_t(rows_ * stage_.width),
                            int(stage_.reduce_dtype));
    reduce_ns_ += (std::chrono::steady_clock::now() - begun).count();
    if (bias)
      for (int64_t row = 0; row < rows_; ++row) gs::add_row(at(part_, row), bias, stage_.width);
  }

  void attend(gs::Team& team, const LayerFields& layer) {
    gs::Call<T> call = call_;
    call.cache = cache_of(layer);
    const gs::Decoder<T> decoder(planned_, call);
    team.share(int64_t(work_.size()), [&](int64_t i) { decoder.run(work_[i]); });
    if (decoder.num_merges())
      team.share(decoder.num_merges(), [&](int64_t i) { decoder.merge(i); });
  }

  const Stage& stage_;
  const gs::Shape& shape_;
  const gs::Step& step_;
  const int64_t rows_;
  T* x_;
  const int64_t q_size_, kv_size_, wide_width_, ffn_;
  T *normed_, *qkv_, *queries_, *attended_, *part_, *wide_, *gated_;
  gs::Call<T> call_;
  gs::Decoder<T> planned_;
  std::vector<gs::DecodeWork> work_;
  bool takes_heads_ = false, gates_ = false;  // in the pieces of work of products
  int status_ = 0;  // written by one thread, which the others wait for
  int64_t reduce_ns_ = 0;
};
#endif

}  // namespace
