// The compiled operations against plain loops in double, without torch: for processors, or emulators
// of them, on which the suite cannot run. Says what differs; ends with 0 where nothing does.
#include <numeric>

#include "kernel_check.h"
#include "kernel_check_products.h"

namespace {

template <class T>
void check_norm(index_t rows, index_t d) {
  auto x = drawn<T>(rows * d, 4.0), delta = drawn<T>(rows * d), weight = drawn<T>(d);
  const auto before = x;
  std::vector<T> out(rows * d);
  gs_add_norm(Kind<T>::kCode, x.data(), delta.data(), weight.data(), out.data(), rows, d, kEps,
              kThreads);
  for (index_t row = 0; row < rows; ++row) {
    double squares = 0;
    for (index_t i = row * d; i < (row + 1) * d; ++i) {
      expect("sum", Kind<T>::kName, wide(x[i]), rounded<T>(wide(before[i]) + wide(delta[i])),
             Kind<T>::kNear);
      squares += wide(x[i]) * wide(x[i]);
    }
    const double factor = 1 / std::sqrt(squares / d + kEps);
    for (index_t i = 0; i < d; ++i)
      expect("norm", Kind<T>::kName, wide(out[row * d + i]),
             wide(x[row * d + i]) * factor * wide(weight[i]), Kind<T>::kNear);
  }
}

template <class T>
void check_gate(index_t rows, index_t blocks, index_t f) {
  const auto gate_up = drawn<T>(rows * blocks * 2 * f, 20.0);
  std::vector<T> out(rows * blocks * f);
  gs_silu_mul(Kind<T>::kCode, gate_up.data(), out.data(), rows, blocks, f, kThreads);
  for (index_t block = 0; block < rows * blocks; ++block)
    for (index_t i = 0; i < f; ++i) {
      const double gate = wide(gate_up[2 * block * f + i]), up = wide(gate_up[(2 * block + 1) * f + i]);
      expect("gate", Kind<T>::kName, wide(out[block * f + i]),
             rounded<T>(gate / (1 + std::exp(-gate))) * up, Kind<T>::kNear);
    }
}

// A step of sequences with ``lengths`` new and ``contexts`` cached tokens.
template <class T>
class Attention {
  using C = gs::ComputeOf<T>;

 public:
  Attention(std::vector<index_t> lengths, std::vector<index_t> contexts, index_t num_q,
            index_t num_kv, index_t head_dim, index_t block_size, bool has_norms)
      : lengths_(std::move(lengths)), contexts_(std::move(contexts)), num_q_(num_q),
        num_kv_(num_kv), head_dim_(head_dim), block_size_(block_size) {
    lay_out();
    const index_t width = (num_q + 2 * num_kv) * head_dim;
    qkv_ = drawn<T>(num_tokens_ * width);
    if (has_norms) norms_ = drawn<T>((num_q + num_kv) * head_dim);
    keys_ = drawn<T>(num_blocks_ * block_size * num_kv * head_dim);
    values_ = drawn<T>(num_blocks_ * block_size * num_kv * head_dim);
    for (const C angle : drawn<C>(longest_ * head_dim / 2, 7.0)) angles_.push_back(angle);
    for (index_t position = 0; position < longest_; ++position)
      for (const bool is_cosine : {true, false})
        for (index_t i = 0; i < head_dim / 2; ++i) {
          const double angle = angles_[position * head_dim / 2 + i];
          rope_.push_back(C(is_cosine ? std::cos(angle) : std::sin(angle)));
        }
  }

  void check() {
    const gs::Shape shape{rope_.data(), head_dim_, num_q_, num_kv_, block_size_, kEps};
    const gs::Step step{lengths_.data(), starts_.data(), totals_.data(), positions_.data(),
                        slots_.data(), tables_.data(), index_t(lengths_.size()), width_,
                        num_tokens_, kThreads};
    std::vector<T> out(num_tokens_ * num_q_ * head_dim_);
    gs_attend(Kind<T>::kCode, &shape, &step, keys_.data(), values_.data(),
              norms_.empty() ? nullptr : norms_.data(), qkv_.data(), out.data(), num_tokens_);
    for (size_t seq = 0; seq < lengths_.size(); ++seq)
      for (index_t i = 0; i < lengths_[seq]; ++i)
        for (index_t head = 0; head < num_q_; ++head) check_head(seq, i, head, out);
  }

 private:
  void lay_out() {
    for (size_t seq = 0; seq < lengths_.size(); ++seq) {
      starts_.push_back(num_tokens_);
      totals_.push_back(lengths_[seq] + contexts_[seq]);
      num_tokens_ += lengths_[seq];
      longest_ = std::max(longest_, totals_[seq]);
      num_blocks_ += gs::ceil_div(totals_[seq], block_size_);
    }
    width_ = gs::ceil_div(longest_, block_size_);
    std::vector<int32_t> blocks(num_blocks_);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), source);
    tables_.assign(lengths_.size() * width_, -1);
    for (size_t seq = 0; seq < lengths_.size(); ++seq) {
      for (index_t i = 0; i < gs::ceil_div(totals_[seq], block_size_); ++i) {
        tables_[seq * width_ + i] = blocks.back();
        blocks.pop_back();
      }
      for (index_t position = contexts_[seq]; position < totals_[seq]; ++position) {
        positions_.push_back(position);
        slots_.push_back(slot(seq, position));
      }
    }
  }

  index_t slot(size_t seq, index_t position) const {
    return tables_[seq * width_ + position / block_size_] * block_size_ + position % block_size_;
  }

  // A head of queries or keys as the cache and products see it.
  std::vector<double> turned(index_t row, index_t head) const {
    std::vector<double> x(head_dim_), out(head_dim_);
    double squares = 0;
    for (index_t i = 0; i < head_dim_; ++i) {
      x[i] = wide(qkv_[(row * (num_q_ + 2 * num_kv_) + head) * head_dim_ + i]);
      squares += x[i] * x[i];
    }
    const double factor = 1 / std::sqrt(squares / head_dim_ + kEps);
    if (!norms_.empty())
      for (index_t i = 0; i < head_dim_; ++i)
        x[i] = rounded<T>(x[i] * factor * wide(norms_[head * head_dim_ + i]));
    const index_t half = head_dim_ / 2;
    for (index_t i = 0; i < half; ++i) {
      const double angle = angles_[positions_[row] * half + i];
      out[i] = rounded<T>(x[i] * std::cos(angle) - x[i + half] * std::sin(angle));
      out[i + half] = rounded<T>(x[i + half] * std::cos(angle) + x[i] * std::sin(angle));
    }
    return out;
  }

  void check_head(size_t seq, index_t i, index_t head, const std::vector<T>& out) const {
    const index_t row = starts_[seq] + i, kv = head / (num_q_ / num_kv_);
    const auto query = turned(row, head);
    if (head % (num_q_ / num_kv_) == 0) {
      const auto key = turned(row, num_q_ + kv);
      for (index_t d = 0; d < head_dim_; ++d)
        expect("key", Kind<T>::kName, wide(keys_[at(seq, contexts_[seq] + i, kv, d)]), key[d],
               Kind<T>::kNear);
    }
    const index_t visible = contexts_[seq] + i + 1;
    std::vector<double> shares(visible);
    double best = -INFINITY, sum = 0;
    for (index_t t = 0; t < visible; ++t) {
      for (index_t d = 0; d < head_dim_; ++d) shares[t] += query[d] * wide(keys_[at(seq, t, kv, d)]);
      best = std::max(best, shares[t] /= std::sqrt(double(head_dim_)));
    }
    for (double& share : shares) sum += share = std::exp(share - best);
    for (index_t d = 0; d < head_dim_; ++d) {
      double want = 0;
      for (index_t t = 0; t < visible; ++t) want += shares[t] / sum * wide(values_[at(seq, t, kv, d)]);
      expect("attention", Kind<T>::kName, wide(out[(row * num_q_ + head) * head_dim_ + d]), want,
             Kind<T>::kNear);
    }
  }

  index_t at(size_t seq, index_t position, index_t kv, index_t d) const {
    return (slot(seq, position) * num_kv_ + kv) * head_dim_ + d;
  }

  std::vector<index_t> lengths_, contexts_, starts_, totals_, positions_, slots_;
  std::vector<int32_t> tables_;
  index_t num_q_, num_kv_, head_dim_, block_size_;
  index_t num_tokens_ = 0, longest_ = 0, num_blocks_ = 0, width_ = 0;
  std::vector<T> qkv_, norms_, keys_, values_;
  std::vector<double> angles_;
  std::vector<C> rope_;
};

template <class T>
void check_layer() {
  for (const index_t width : {8, 50, 1024}) check_norm<T>(5, width);
  for (const index_t width : {1, 6, 352}) check_gate<T>(40, 2, width);
  const std::vector<index_t> lengths{1, 1, 40, 150, 3, 1}, contexts{0, 700, 100, 0, 17, 63};
  for (const bool has_norms : {false, true}) {
    Attention<T>(lengths, contexts, 4, 2, 64, 16, has_norms).check();
    Attention<T>(lengths, contexts, 7, 1, 24, 12, has_norms).check();
  }
  Attention<T>(lengths, contexts, 4, 2, 128, 16, false).check();
}

}  // namespace

int main() {
#ifdef _OPENMP
  std::printf("%d threads at most; ", omp_get_max_threads());
#endif
  check_layer<float>();
  check_layer<double>();
  check_layer<BFloat16>();
  check_layer<Half>();
  check_products<float>();
  check_products<BFloat16>();
  check_products<Half>();
  for (const index_t rows : {1, 2, 3, 6, 8, 13, 24, 32, 48, 49, 100}) {
    check_few<float>(192, 96, rows, 64);
    check_few<BFloat16>(192, 96, rows, 64);
    check_few<BFloat16>(160, 64, rows, 32);
    check_part<float>(320, 167, rows, 64, 64);
    check_part<BFloat16>(320, 160, rows, 64, 64);
    check_part<BFloat16>(160, 160, rows, 32, 32);
  }
  std::printf("%d-bit vectors, int8 by way %d, %d and %d rows packed: %d of %d numbers wrong\n",
              (gs_features() >> 2) * 8, gs_int8_way(), gs_most_few(0), gs_most_few(1), num_wrong,
              num_checked);
  return num_wrong != 0;
}
