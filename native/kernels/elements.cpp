// Norms, activations and sums of rows.
#include <cmath>
#include <cstring>

#include "kernels/decode.h"
#include "kernels/exponential.h"

namespace bw::BW_ISA {
namespace {

// Sums of x and of x^2, of `count` values.
float total(const float* x, int64_t count, float mean, bool squares) {
  F32x16 sums = zero_f32();
  const F32x16 shift = splat(mean);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const F32x16 here = sub(load(x + i), shift);
    sums = squares ? fma(here, here, sums) : add(sums, here);
  }
  float rest = 0;
  for (; i < count; ++i) rest += squares ? (x[i] - mean) * (x[i] - mean) : x[i] - mean;
  return sum(sums) + rest;
}

constexpr float kGelu = 0.7978845608f;  // sqrt(2 / pi)

// 16 values of activation(x).
void activate(Activation activation, const float* x, float* y) {
  alignas(64) float inside[16], part[16];
  switch (activation) {
    case Activation::none: std::memcpy(y, x, sizeof(part)); return;
    case Activation::silu: std::memcpy(inside, x, sizeof(inside)); break;
    case Activation::gelu_tanh:
      // 0.5 (1 + tanh z) = sigmoid(2 z)
      for (int i = 0; i < 16; ++i) inside[i] = 2 * kGelu * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
      break;
    case Activation::gelu_sigmoid:
      for (int i = 0; i < 16; ++i) inside[i] = 1.702f * x[i];
      break;
    case Activation::gelu_erf:
      for (int i = 0; i < 16; ++i) y[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
      return;
    case Activation::relu:
    case Activation::relu_squared:
      for (int i = 0; i < 16; ++i) y[i] = x[i] > 0 ? x[i] : 0;
      if (activation == Activation::relu_squared)
        for (int i = 0; i < 16; ++i) y[i] *= y[i];
      return;
  }
  sigmoid(inside, part);
  for (int i = 0; i < 16; ++i) y[i] = x[i] * part[i];
}

}  // namespace

void norm_row(const Norm& norm, const float* x, float* y) {
  const int64_t count = norm.dim;
  const float mean = norm.centred ? total(x, count, 0, false) / static_cast<float>(count) : 0;
  const float scale = 1.0f / sqrtf(total(x, count, mean, true) / static_cast<float>(count) + norm.eps);
  if (norm.shift) {
    for (int64_t i = 0; i < count; ++i) y[i] = (x[i] - mean) * scale * norm.gain[i] + norm.shift[i];
  } else {
    for (int64_t i = 0; i < count; ++i) y[i] = (x[i] - mean) * scale * norm.gain[i];
  }
}

void add_row(float* x, const float* y, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] += factor * y[i];
}

void gate_row(Activation activation, const float* gate, const float* up, float* y, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    activate(activation, gate + i, y + i);
    if (up)
      for (int j = 0; j < 16; ++j) y[i + j] *= up[i + j];
  }
  if (i == count) return;
  alignas(64) float last[16] = {}, values[16];
  std::memcpy(last, gate + i, static_cast<size_t>(count - i) * sizeof(float));
  activate(activation, last, values);
  for (int64_t j = 0; i < count; ++i, ++j) y[i] = up ? values[j] * up[i] : values[j];
}

void cap_row(float* x, float factor, float cap, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
  if (cap > 0)
    for (int64_t i = 0; i < count; ++i) x[i] = cap * tanhf(x[i] / cap);
}

}  // namespace bw::BW_ISA
