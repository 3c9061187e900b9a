// What the parts with further products share.
#pragma once

#include "tests/weights.h"

namespace bw::test {

// A bias that is given or not.
class Bias {
 public:
  Bias(Random& random, int64_t out) : values_(out), there_(random.coin()) { fill_normal(random, values_); }
  const Exact<float>* given() const { return there_ ? &values_ : nullptr; }
  double operator[](int64_t i) const { return there_ ? values_[i] : 0; }

 private:
  Exact<float> values_;
  bool there_;
};

// Every y[row][out] is the bias plus the sum over the inputs of part(row, out, input); rows with NaN or Inf are not
// finite. more(row, out, input): what a kernel adds and takes away again on its way, which counts for its rounding.
template <class Part, class More>
void check_sums(const Rows& x, const Result& y, int64_t outs, const Bias& bias, const std::string& text, Part&& part,
                More&& more) {
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t out = 0; out < outs; ++out) {
      const int64_t place = row * outs + out;
      if (x.bad[static_cast<size_t>(row)]) {
        check(!std::isfinite(y[place]), "NaN and Inf reach the output: " + text);
        continue;
      }
      double sum = bias[out], size = std::fabs(sum);
      for (int64_t k = 0; k < x.in; ++k) {
        const double here = part(row, out, k);
        sum += here, size += std::fabs(here) + std::fabs(more(row, out, k));
      }
      check(y.holds(place, sum, size), text);
    }
  }
}
template <class Part>
void check_sums(const Rows& x, const Result& y, int64_t outs, const Bias& bias, const std::string& text, Part&& part) {
  check_sums(x, y, outs, bias, text, part, [](int64_t, int64_t, int64_t) { return 0.0; });
}

}  // namespace bw::test
