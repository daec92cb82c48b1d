// All layers of a step of one new token per sequence in one call, by one team of threads: at one
// row Python and torch would take a fifth of the time.
//
// A piece of work is done by the functions that do it alone elsewhere, so that answers are the same.
#pragma once

#include <chrono>

#include "../kernels/cpu/attention.h"
#include "few_multiply.h"

// engine/parallel/native_layers.py has the fields of all three.
struct Piece {
  const void *weight, *bias;  // bias [outputs] or null
  int64_t block, outputs, inputs;
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
  int64_t reduce_dtype;
  const void *const *o_bias, *const *down_bias;  // of each layer, added to sums over a group; or null
};

namespace {

constexpr int kNoMemory = -1;

#ifdef __AVX512F__
// T of layers: float or gs::BFloat16.
template <class T>
class StepOfLayers {
  using Bits = typename std::conditional<sizeof(T) == 4, float, uint16_t>::type;
  using C = gs::ComputeOf<T>;
  static constexpr bool kIsWide = sizeof(T) == 4;

 public:
  StepOfLayers(const Stage& stage, const gs::Step& step, void* x, int64_t rows)
      : stage_(stage), shape_(*stage.shape), step_(step), rows_(rows), x_(static_cast<T*>(x)),
        q_size_(shape_.num_q * shape_.head_dim), kv_size_(shape_.num_kv * shape_.head_dim),
        wide_width_(outputs_of(stage.layers->gate_up, stage.num_gate_up)),
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
    gs::with_team(int(step_.num_threads), [&](gs::Team& team) {
      for (int64_t i = 0; i < stage_.num_layers && !status_; ++i) run_layer(team, i);
      if (!status_)
        each_row(team, [&](int64_t row) { gs::add_row(at(x_, row), at(part_, row), stage_.width); });
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

  T* at(T* rows, int64_t row) const { return rows + row * stage_.width; }

  template <class Work>
  void each_row(gs::Team& team, const Work& work) const {
    team.share_rows(rows_, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) work(row);
    });
  }

  void run_layer(gs::Team& team, int64_t number) {
    const LayerFields& layer = stage_.layers[number];
    norm(team, layer.input_norm, number > 0);
    side_by_side(team, layer.qkv, stage_.num_qkv, qkv_, q_size_ + 2 * kv_size_);
    attend(team, layer);
    sum(team, layer.o, stage_.num_o, attended_, q_size_, stage_.o_bias, number);
    if (status_) return;
    norm(team, layer.post_norm, true);
    side_by_side(team, layer.gate_up, stage_.num_gate_up, wide_, wide_width_);
    gate(team);
    sum(team, layer.down, stage_.num_down, gated_, wide_width_ / 2, stage_.down_bias, number);
  }

  // The block's output joins the residual stream, whose norm the next product reads.
  void norm(gs::Team& team, const void* weight, bool has_part) {
    each_row(team, [&](int64_t row) {
      if (has_part) gs::add_row(at(x_, row), at(part_, row), stage_.width);
      gs::norm_row(at(x_, row), static_cast<const T*>(weight), at(normed_, row), stage_.width,
                   shape_.eps);
    });
  }

  Product<Bits> product(const Piece& piece, const T* x, int64_t x_stride, T* out,
                        int64_t out_stride) const {
    auto bits = [](const void* p) { return static_cast<const Bits*>(p); };
    return {bits(piece.weight), bits(x), bits(piece.bias), nullptr, reinterpret_cast<Bits*>(out),
            piece.block, piece.outputs, piece.inputs, rows_, x_stride, out_stride};
  }

  void side_by_side(gs::Team& team, const Piece* pieces, int64_t count, T* out, int64_t width) {
    for (int64_t i = 0; i < count; out += pieces[i++].outputs)
      multiply(product(pieces[i], normed_, stage_.width, out, width), team);
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
    call.cache = {static_cast<T*>(layer.keys), static_cast<T*>(layer.values)};
    team.share_rows(rows_, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        const int64_t slot = step_.slots[row] * kv_size_;
        gs::take_in(shape_, qkv_ + row * (q_size_ + 2 * kv_size_),
                    static_cast<const T*>(layer.qk_norm),
                    static_cast<const C*>(shape_.rope) + step_.positions[row] * shape_.head_dim,
                    queries_ + row * q_size_, call.cache.keys + slot, call.cache.values + slot);
      }
    });
    const gs::Decoder<T> decoder(planned_, call);
    team.share(int64_t(work_.size()), [&](int64_t i) { decoder.run(work_[i]); });
    if (decoder.num_merges())
      team.share(decoder.num_merges(), [&](int64_t i) { decoder.merge(i); });
  }

  void gate(gs::Team& team) {
    const int64_t f = wide_width_ / 2 / stage_.ffn_blocks;
    team.share_rows(rows_ * stage_.ffn_blocks, [&](int64_t first, int64_t last) {
      gs::silu_mul(wide_ + 2 * first * f, gated_ + first * f, last - first, 1, f, 1);
    });
  }

  const Stage& stage_;
  const gs::Shape& shape_;
  const gs::Step& step_;
  const int64_t rows_;
  T* x_;
  const int64_t q_size_, kv_size_, wide_width_;
  T *normed_, *qkv_, *queries_, *attended_, *part_, *wide_, *gated_;
  gs::Call<T> call_;
  gs::Decoder<T> planned_;
  std::vector<gs::DecodeWork> work_;
  int status_ = 0;  // written by one thread, which the others wait for
  int64_t reduce_ns_ = 0;
};
#endif

}  // namespace
