// The compiled operations against plain loops in double, without torch: for processors, or emulators
// of them, on which the suite cannot run. Says what differs; ends with 0 where nothing does.
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../../../engine/kernels/cpu/paged.h"

extern "C" {
int gs_features();
int gs_add_norm(int dtype, void* x, const void* delta, const void* weight, void* out, int64_t rows,
                int64_t d, double eps, int threads);
int gs_silu_mul(int dtype, const void* gate_up, void* out, int64_t rows, int64_t blocks, int64_t f,
                int threads);
int gs_attend(int dtype, const gs::Shape* shape, const gs::Step* step, void* keys, void* values,
              const void* norms, const void* qkv, void* out, int64_t num_rows);
int gs_int8_way();
int gs_multiply_int8(int kind, int way, const int8_t* weight, const float* scales, const void* x,
                     const void* bias, const void* total, void* out, int64_t pitch,
                     int64_t outputs, int64_t inputs, int64_t rows, int64_t x_stride, int digits,
                     int threads);
int gs_most_few(int is_narrow);
int gs_has_parts(int is_narrow);
void gs_multiply_few(int is_narrow, const void* weight, const void* x, const void* bias,
                     const void* total, void* out, int64_t block, int64_t pitch, int64_t outputs,
                     int64_t inputs, int64_t rows, int64_t x_stride, int threads);
int gs_most_plain(int is_narrow);
void gs_multiply_plain(int is_narrow, const void* weight, const void* x, const void* bias,
                       void* out, int64_t outputs, int64_t inputs, int64_t rows, int64_t x_stride,
                       int threads);
}

namespace {

using gs::BFloat16;
using gs::Half;
using gs::index_t;
constexpr int kThreads = 2;
constexpr double kEps = 1e-5;

int num_checked = 0, num_wrong = 0;

void expect(const char* what, const char* type, double got, double want, double tolerance,
            double size = 1.0) {
  ++num_checked;
  if (std::abs(got - want) <= tolerance * std::max(size, std::abs(want))) return;
  if (++num_wrong <= 20) std::printf("%s of %s: %.9g, not %.9g\n", what, type, got, want);
}

// Of a type: its numbers in by_dtype and in gs_multiply_int8 (-1: none), and how near is near.
template <class T>
struct Kind;
template <>
struct Kind<float> {
  static constexpr int kCode = 0, kInt8 = 0;
  static constexpr double kNear = 2e-5, kProduct = 5e-6;
  static constexpr const char* kName = "float32";
};
template <>
struct Kind<double> {
  static constexpr int kCode = 1, kInt8 = -1;
  static constexpr double kNear = 1e-11, kProduct = 1e-11;
  static constexpr const char* kName = "float64";
};
template <>
struct Kind<BFloat16> {
  static constexpr int kCode = 2, kInt8 = 1;
  static constexpr double kNear = 3e-2, kProduct = 1e-2;
  static constexpr const char* kName = "bfloat16";
};
template <>
struct Kind<Half> {
  static constexpr int kCode = 3, kInt8 = 2;
  static constexpr double kNear = 4e-3, kProduct = 1e-3;
  static constexpr const char* kName = "float16";
};

double wide(float x) { return x; }
double wide(double x) { return x; }
double wide(Half x) { return double(float(x)); }
double wide(BFloat16 x) { return gs::bits_as<float>(uint32_t(x.bits) << 16); }

template <class T>
T narrow(double x) {
  if constexpr (std::is_same<T, BFloat16>::value) {
    const uint32_t bits = gs::bits_as<uint32_t>(float(x));
    return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
  } else {
    return T(x);
  }
}
template <class T>
double rounded(double x) { return wide(narrow<T>(x)); }

std::mt19937 source(0);

template <class T>
std::vector<T> drawn(index_t count, double scale = 1.0) {
  std::normal_distribution<double> normal(0.0, scale);
  std::vector<T> found(count);
  for (T& one : found) one = narrow<T>(normal(source));
  return found;
}

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

// Rows ``apart`` of x times weight(output, input), plus bias and what was there, against ``out``.
template <class T, class X, class Weight>
void check_product(const char* what, const std::vector<X>& x, index_t apart, const Weight& weight,
                   const std::vector<T>* bias, const std::vector<T>* total,
                   const std::vector<T>& out, index_t rows, index_t outputs, index_t inputs) {
  for (index_t r = 0; r < rows; ++r)
    for (index_t o = 0; o < outputs; ++o) {
      double want = bias ? wide((*bias)[o]) : 0.0;
      if (total) want += wide((*total)[r * outputs + o]);
      for (index_t k = 0; k < inputs; ++k) want += wide(x[r * apart + k]) * weight(o, k);
      expect(what, Kind<T>::kName, wide(out[r * outputs + o]), want, Kind<T>::kProduct,
             4 * std::sqrt(double(inputs)));
    }
}

// The numbers that rows, kept ``apart``, stand for once they are rounded to int8, halves to even ones.
template <class T>
std::vector<double> rows_in_int8(const std::vector<T>& x, index_t rows, index_t apart,
                                 index_t inputs) {
  std::vector<double> found(x.size());
  for (index_t r = 0; r < rows; ++r) {
    float most = 1e-12f;
    for (index_t k = 0; k < inputs; ++k) most = std::max(most, std::abs(float(wide(x[r * apart + k]))));
    const float unit = most / 127, factor = 1 / unit;
    for (index_t k = 0; k < inputs; ++k)
      found[r * apart + k] = double(unit) * std::nearbyint(float(wide(x[r * apart + k])) * factor);
  }
  return found;
}

// The part of a packed weight from input ``skipped`` on.
template <class T>
void check_int8(index_t outputs, index_t pitch, index_t rows, index_t skipped) {
  const index_t inputs = pitch - skipped;
  std::vector<int8_t> weight(outputs * pitch), packed(outputs * pitch);
  std::vector<float> scales(outputs);
  for (int8_t& one : weight) one = int8_t(int(source() % 255) - 127);
  for (float& one : scales) one = float(1 + source() % 100) / 5000.0f;
  for (index_t o = 0; o < outputs; ++o)
    for (index_t k = 0; k < pitch; ++k) {
      const index_t first = o / 16 * 16, width = std::min<index_t>(16, outputs - first);
      packed[first * pitch + k / 4 * 4 * width + (o - first) * 4 + k % 4] = weight[o * pitch + k];
    }
  const auto x = drawn<T>(rows * (inputs + 40)), bias = drawn<T>(outputs);
  const auto total = drawn<T>(rows * outputs);
  const auto in_int8 = rows_in_int8(x, rows, inputs + 40, inputs);
  auto number = [&](index_t o, index_t k) {
    return double(scales[o]) * weight[o * pitch + skipped + k];
  };
  for (int way = 0; way <= gs_int8_way(); ++way)
    for (const bool has_bias : {true, false})
      for (const int digits : {0, 1, 3}) {
        std::vector<T> out(rows * outputs);
        gs_multiply_int8(Kind<T>::kInt8, way, packed.data() + skipped * 16, scales.data(), x.data(),
                         has_bias ? bias.data() : nullptr, has_bias ? nullptr : total.data(),
                         out.data(), pitch, outputs, inputs, rows, inputs + 40, digits, kThreads);
        auto check = [&](const char* what, const auto& numbers) {
          check_product(what, numbers, inputs + 40, number, has_bias ? &bias : nullptr,
                        has_bias ? nullptr : &total, out, rows, outputs, inputs);
        };
        digits == 1 ? check("int8 by int8", in_int8) : check("int8", x);
      }
}

// Where a weight as oneDNN packs it has output ``o`` and input ``k``.
template <class T>
index_t packed_at(index_t o, index_t k, index_t block, index_t pitch) {
  constexpr index_t kTogether = 4 / sizeof(T);
  return o / block * block * pitch + k / kTogether * kTogether * block + o % block * kTogether +
         k % kTogether;
}

// The part of a packed weight from ``skipped`` outputs and inputs on.
template <class T>
void check_part(index_t all, index_t pitch, index_t rows, index_t block, index_t skipped) {
  constexpr bool kIsNarrow = sizeof(T) == 2;
  if (!gs_has_parts(kIsNarrow)) return;
  const index_t outputs = all - skipped, inputs = pitch - skipped;
  const auto weight = drawn<T>(all * pitch), bias = drawn<T>(outputs);
  const auto x = drawn<T>(rows * (inputs + 40));
  std::vector<T> packed(all * pitch), out(rows * outputs);
  for (index_t o = 0; o < all; ++o)
    for (index_t k = 0; k < pitch; ++k)
      packed[packed_at<T>(o, k, block, pitch)] = weight[o * pitch + k];
  auto number = [&](index_t o, index_t k) {
    return wide(weight[(o + skipped) * pitch + skipped + k]);
  };
  gs_multiply_few(kIsNarrow, &packed[packed_at<T>(skipped, skipped, block, pitch)], x.data(),
                  bias.data(), nullptr, out.data(), block, pitch, outputs, inputs, rows,
                  inputs + 40, kThreads);
  check_product("part", x, inputs + 40, number, &bias, static_cast<std::vector<T>*>(nullptr), out,
                rows, outputs, inputs);
}

// Products with a packed weight and with the plain one.
template <class T>
void check_few(index_t outputs, index_t inputs, index_t rows, index_t block) {
  constexpr bool kIsNarrow = sizeof(T) == 2;
  const auto weight = drawn<T>(outputs * inputs), bias = drawn<T>(outputs);
  const auto x = drawn<T>(rows * (inputs + 40)), total = drawn<T>(rows * outputs);
  std::vector<T> packed(outputs * inputs), out(rows * outputs);
  for (index_t o = 0; o < outputs; ++o)
    for (index_t k = 0; k < inputs; ++k)
      packed[packed_at<T>(o, k, block, inputs)] = weight[o * inputs + k];
  auto number = [&](index_t o, index_t k) { return wide(weight[o * inputs + k]); };
  if (rows <= gs_most_few(kIsNarrow))
    for (const bool has_bias : {true, false}) {
      gs_multiply_few(kIsNarrow, packed.data(), x.data(), has_bias ? bias.data() : nullptr,
                      has_bias ? nullptr : total.data(), out.data(), block, inputs, outputs, inputs, rows,
                      inputs + 40, kThreads);
      check_product("packed", x, inputs + 40, number, has_bias ? &bias : nullptr,
                    has_bias ? nullptr : &total, out, rows, outputs, inputs);
    }
  if (rows <= gs_most_plain(kIsNarrow)) {
    gs_multiply_plain(kIsNarrow, weight.data(), x.data(), bias.data(), out.data(), outputs, inputs,
                      rows, inputs + 40, kThreads);
    check_product("plain", x, inputs + 40, number, &bias, static_cast<std::vector<T>*>(nullptr),
                  out, rows, outputs, inputs);
  }
}

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

template <class T>
void check_products() {
  for (const index_t rows : {1, 2, 6, 25, 33, 70, 100}) {
    check_int8<T>(203, 100, rows, 0);
    check_int8<T>(192, 100, rows, 36);
  }
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
