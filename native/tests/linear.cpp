// Packed products against plain loops: random shapes, every kind of level and zero point, numbers at the edges.
#include "tests/weights.h"

namespace bw::test {
namespace {

// The 8-bit codes of sound rows are those of a plain loop, to the bit.
Coded checked_codes(const Kernels& kernels, const Case& c, const Rows& x, int threads) {
  const Weight& w = c.weight;
  Coded coded = quantized(kernels, x, w.block, threads);
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t b = 0; b < w.blocks && !x.bad[static_cast<size_t>(row)]; ++b) {
      const int64_t place = b * x.rows + row;
      float peak = 0;
      const auto at = [&](int64_t k) { return b * w.block + k < w.in ? x.values[row * w.in + b * w.block + k] : 0.0f; };
      for (int64_t k = 0; k < w.block; ++k) peak = std::fmax(peak, std::fabs(at(k)));
      const float step = peak == 0 ? 1.0f : peak / 127.0f, inverse = step >= 1.2e-38f ? 1.0f / step : 0.0f;
      check(coded.scale[place] == step, "a block's step: " + c.text);
      int32_t sum = 0;
      for (int64_t k = 0; k < w.block; ++k) {
        const auto code = static_cast<int32_t>(std::nearbyint(at(k) * inverse));
        check(coded.codes[place * w.block + k] == code, "an activation's code: " + c.text);
        sum += code;
      }
      check(coded.sums[place] == sum, "a block's sum: " + c.text);
    }
  }
  return coded;
}

// One product in both ways against sums in double precision, within the rounding of fp32 sums and of the output.
void check_product(const Kernels& kernels, const Case& c, const Rows& x, const Exact<float>* bias, int threads,
                   bool exact) {
  const Weight& w = c.weight;
  Result y(x.type, x.rows * w.out);
  const Output output = y.output(bias);
  const Coded coded = checked_codes(kernels, c, x, threads);
  if (exact) {
    Exact<float> values(w.blocks * x.rows * w.block), sums(w.blocks * x.rows);
    kernels.gather_rows(x.data(), x.type, x.rows, w.in, w.block, values.data(), sums.data(), threads);
    kernels.linear_float(w, {x.rows, w.block, w.blocks, values.data(), sums.data()}, output, threads);
  } else {
    kernels.linear_int8(w, coded.view(), output, threads);
  }
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t out = 0; out < w.out; ++out) {
      double sum = bias ? (*bias)[out] : 0, weight = std::fabs(sum);
      for (int64_t k = 0; k < w.in; ++k) {
        const double a = exact ? x.values[row * w.in + k] : coded.value(row, k);
        sum += a * c.value(out, k);
        // The kernels subtract zero points from finished sums, so those count in the rounding error.
        weight += std::fabs(a) * (std::fabs(c.value(out, k)) + std::fabs(c.scale_at(c.parameter(out, k))) * 512);
      }
      const int64_t place = row * w.out + out;
      if (x.bad[static_cast<size_t>(row)]) {
        // A weight of zero times infinity is NaN, too.
        check(!std::isfinite(y[place]), "NaN and Inf reach the output: " + c.text);
      } else {
        check(y.holds(place, sum, weight), "a product: " + c.text);
      }
    }
  }
}

}  // namespace

void test_linear(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    Case c = make_case(random, random_weight(random));
    const int threads = static_cast<int>(random.number(1, 4));
    kernels.pack_weight(c.weight, c.codes.data(), c.packed.data(), threads);
    Exact<uint8_t> plain(c.packed.size()), codes(c.codes.size());
    pack_plainly(c, plain);
    for (int64_t i = 0; i < plain.size(); ++i) check(plain[i] == c.packed[i], "the layout: " + c.text);
    kernels.unpack_weight(c.weight, codes.data(), threads);
    for (int64_t i = 0; i < codes.size(); ++i) check(codes[i] == c.codes[i], "unpacked codes: " + c.text);
    const Rows x = make_rows(random, c.weight.in);
    Exact<float> bias(c.weight.out);
    fill_normal(random, bias);
    const Exact<float>* given = random.coin() ? &bias : nullptr;
    check_product(kernels, c, x, given, threads, true);
    if (c.weight.levels == Levels::affine) check_product(kernels, c, x, given, threads, false);
  }
}

}  // namespace bw::test
