// Products with int8, packed and plain weights against plain loops in double.
#pragma once

#include "kernel_check.h"

namespace {

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
void check_products() {
  for (const index_t rows : {1, 2, 6, 25, 33, 70, 100}) {
    check_int8<T>(203, 100, rows, 0);
    check_int8<T>(192, 100, rows, 36);
  }
}

}  // namespace
