// The small operations of a decoding step against their formulas in double precision.
#include "core/network.h"
#include "tests/reference.h"

namespace bw::test {

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979) * (x + 0.044715 * x * x * x)));
    case Activation::gelu_erf: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::relu: return x > 0 ? x : 0;
    case Activation::relu_squared: return x > 0 ? x * x : 0;
    case Activation::gelu_sigmoid: return x / (1 + std::exp(-1.702 * x));
  }
  return 0;
}
namespace {

bool near(double got, double wanted, double size) { return std::fabs(got - wanted) <= 2e-6 * size + 1e-6; }

void norms(const Kernels& kernels, Random& random) {
  Norm norm;
  norm.dim = random.number(1, 200);
  norm.eps = random.one_of({1e-5f, 1e-6f, 0.1f});
  norm.centred = random.coin();
  Exact<float> x(norm.dim), y(norm.dim), gain(norm.dim), shift(norm.dim);
  for (Exact<float>* part : {&x, &gain, &shift}) fill_normal(random, *part);
  norm.gain = gain.data();
  norm.shift = random.coin() ? shift.data() : nullptr;
  double mean = 0, square = 0;
  for (int64_t i = 0; i < norm.dim; ++i) mean += x[i] / static_cast<double>(norm.dim);
  if (!norm.centred) mean = 0;
  for (int64_t i = 0; i < norm.dim; ++i) square += (x[i] - mean) * (x[i] - mean) / static_cast<double>(norm.dim);
  const double scale = 1 / std::sqrt(square + norm.eps);
  kernels.norm_row(norm, x.data(), y.data());
  for (int64_t i = 0; i < norm.dim; ++i) {
    const double wanted = (x[i] - mean) * scale * gain[i] + (norm.shift ? shift[i] : 0.0f);
    check(near(y[i], wanted, 4 * scale * std::fabs(gain[i]) + std::fabs(wanted)), "a norm");
  }
  kernels.norm_row(norm, x.data(), x.data());
  for (int64_t i = 0; i < norm.dim; ++i) check(x[i] == y[i], "a norm in place");
}

void sums(const Kernels& kernels, Random& random) {
  const int64_t count = random.number(0, 100);
  const float factor = random.normal(), cap = random.one_of({0.0f, 5.0f, 30.0f});
  Exact<float> x(count), y(count);
  fill_normal(random, x);
  fill_normal(random, y);
  const Exact<float> old = copy_of(x);
  kernels.add_row(x.data(), y.data(), factor, count);
  for (int64_t i = 0; i < count; ++i)
    check(near(x[i], old[i] + double{factor} * y[i], 10), "a row is added to another");
  const Exact<float> added = copy_of(x);
  kernels.cap_row(x.data(), factor, cap, count);
  for (int64_t i = 0; i < count; ++i) {
    const double scaled = double{factor} * added[i];
    check(near(x[i], cap > 0 ? cap * std::tanh(scaled / cap) : scaled, 10), "a row is capped");
  }
}

void gates(const Kernels& kernels, Random& random) {
  const auto activation = static_cast<Activation>(random.number(0, 6));
  const int64_t count = random.number(0, 100);
  const float size = random.one_of({1.0f, 10.0f, 200.0f});
  Exact<float> gate(count), up(count), y(count);
  for (int64_t i = 0; i < count; ++i) gate[i] = size * random.normal(), up[i] = random.normal();
  const bool gated = random.coin();
  kernels.gate_row(activation, gate.data(), gated ? up.data() : nullptr, y.data(), count);
  for (int64_t i = 0; i < count; ++i) {
    const double wanted = activated(activation, gate[i]) * (gated ? double{up[i]} : 1.0);
    check(near(y[i], wanted, std::fabs(wanted) + std::fabs(gate[i])), "an activation");
  }
}

void dense(const Kernels& kernels, Random& random) {
  Dense weight;
  weight.out = random.number(1, 30);
  weight.in = random.number(1, 100);
  const Rows w = rows_of(random, weight.out, weight.in, static_cast<Float>(random.number(0, 2)));
  const Rows x = rows_of(random, random.number(1, 9), weight.in, Float::f32);
  Exact<float> bias(weight.out), y(x.rows * weight.out);
  fill_normal(random, bias);
  weight.type = w.type;
  weight.values = w.data();
  weight.bias = random.coin() ? bias.data() : nullptr;
  const int64_t first = random.number(0, weight.out), last = random.number(first, weight.out);
  std::fill(y.data(), y.data() + y.size(), -77.0f);
  kernels.linear_dense(weight, x.values.data(), x.rows, y.data(), first, last);
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t out = 0; out < weight.out; ++out) {
      const float got = y[row * weight.out + out];
      if (out < first || out >= last) {
        check(got == -77.0f, "outputs of others stay");
        continue;
      }
      if (x.bad[static_cast<size_t>(row)] || w.bad[static_cast<size_t>(out)]) {
        check(!std::isfinite(got), "NaN and Inf reach the output of a float matrix");
        continue;
      }
      double sum = weight.bias ? bias[out] : 0, size = std::fabs(sum);
      for (int64_t k = 0; k < weight.in; ++k) {
        const double here = double{x.values[row * weight.in + k]} * w.values[out * weight.in + k];
        sum += here, size += std::fabs(here);
      }
      check(near(got, sum, size), "a product with a float matrix");
    }
  }
}

}  // namespace

void test_rows(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    norms(kernels, random);
    sums(kernels, random);
    gates(kernels, random);
    dense(kernels, random);
  }
}

}  // namespace bw::test
