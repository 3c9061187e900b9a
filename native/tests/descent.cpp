// Coordinate descent against one fused operation after the other: equal to the last bit.
#include "core/descent.h"

#include <vector>

#include "tests/rounding.h"

namespace bw::test {
namespace {

struct Problem {
  Descent descent;
  Exact<float> moments, inverse, weight, value, error;

  int64_t at(int64_t row, int64_t k) const {
    return (row / kSweepRows * descent.in + k) * kSweepRows + row % kSweepRows;
  }
};

Problem random_problem(Random& random) {
  Descent descent;
  descent.out = random.number(1, 80);
  descent.in = random.one_of<int64_t>({1, 2, 8, 9, 40, 130, 150});
  const int64_t in = descent.in, places = descent.tiles() * in * kSweepRows;
  Problem p{descent,
            Exact<float>(in * in),
            Exact<float>(in),
            Exact<float>(places),
            Exact<float>(places),
            Exact<float>(places)};
  for (int64_t i = 0; i < in; ++i) {
    for (int64_t j = 0; j <= i; ++j) p.moments[i * in + j] = p.moments[j * in + i] = random.normal() / 8;
    p.moments[i * in + i] = random.uniform(0.5f, 2);
    p.inverse[i] = 1.0f / p.moments[i * in + i];
  }
  for (int64_t i = 0; i < places; ++i) {
    p.weight[i] = random.normal();
    p.value[i] = random.normal();
    p.error[i] = p.weight[i] - p.value[i];
  }
  p.descent.moments = p.moments.data(), p.descent.inverse = p.inverse.data();
  p.descent.weight = p.weight.data(), p.descent.value = p.value.data(), p.descent.error = p.error.data();
  return p;
}

// One visit of the columns first .. last of a row, on copies of its values and errors.
void visit(const Problem& p, int64_t row, int64_t first, int64_t last, const Rule* rule, std::vector<float>& value,
           std::vector<float>& error) {
  const int64_t in = p.descent.in;
  const std::vector<float> before = error;
  std::vector<float> gone(static_cast<size_t>(in));
  for (int64_t k = first; k < last; ++k) {
    const auto at = static_cast<size_t>(k);
    float slope = 0;
    for (int64_t j = 0; j < in; ++j) slope = std::fma(p.moments[j * in + k], before[static_cast<size_t>(j)], slope);
    for (int64_t j = first; j < k; ++j) slope = std::fma(p.moments[j * in + k], gone[static_cast<size_t>(j)], slope);
    const float wanted = std::fma(slope, p.inverse[k], value[at]);
    uint8_t code;
    const float made = rule ? rule->value(wanted, k, row, code) : wanted;
    gone[at] = value[at] - made;
    value[at] = made;
    error[at] = p.weight[p.at(row, k)] - made;
  }
}

void descend(const Kernels& kernels, Random& random, int threads) {
  Problem p = random_problem(random);
  const Descent& d = p.descent;
  const Rule rule = random_rule(random, d.out, d.in);
  const bool rounded = random.number(0, 3) > 0;
  for (int64_t first = 0; first < d.in;) {
    const int64_t last = std::min(d.in, first + random.number(1, random.coin() ? 10 : kSweepPiece)),
                  count = last - first;
    std::vector<std::vector<float>> values, errors;
    for (int64_t row = 0; row < d.out; ++row) {
      std::vector<float> value, error;
      for (int64_t k = 0; k < d.in; ++k) value.push_back(p.value[p.at(row, k)]), error.push_back(p.error[p.at(row, k)]);
      visit(p, row, first, last, rounded ? &rule : nullptr, value, error);
      values.push_back(value), errors.push_back(error);
    }
    const Exact<float> old = copy_of(p.value);
    const int64_t panels = (count + kSweepPanel - 1) / kSweepPanel * kSweepPanel;
    Exact<float> slopes(d.tiles() * count * kSweepRows), factors(panels * std::max(std::min(d.in, kSweepRun), count));
    Exact<uint8_t> moved(d.tiles());
    kernels.descend(d, first, last, rounded ? &rule.rounding : nullptr, slopes.data(), factors.data(), moved.data(),
                    threads);
    for (int64_t row = 0; row < d.out; ++row) {
      for (int64_t k = 0; k < d.in; ++k) {
        const auto r = static_cast<size_t>(row), c = static_cast<size_t>(k);
        check(p.value[p.at(row, k)] == values[r][c], "a value of a descent");
        check(p.error[p.at(row, k)] == errors[r][c], "an error of a descent");
      }
    }
    for (int64_t tile = 0; tile < d.tiles(); ++tile) {
      bool changed = false;
      const int64_t size = d.in * kSweepRows;
      for (int64_t i = tile * size; i < (tile + 1) * size; ++i) changed = changed || old[i] != p.value[i];
      check((moved[tile] != 0) == changed, "whether a tile moved");
    }
    first = last;
  }
}

}  // namespace

void test_descent(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) descend(kernels, random, static_cast<int>(random.number(1, 4)));
}

}  // namespace bw::test
