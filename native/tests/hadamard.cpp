// Blockwise Hadamard transforms against the matrix, entry by entry; and twice, which changes nothing but the size.
#include "core/hadamard.h"

#include <bit>

#include "tests/weights.h"

namespace bw::test {
namespace {

struct Turn {
  Hadamard form;
  Exact<float> factor, before, after;
};

Turn random_turn(Random& random) {
  Hadamard form;
  form.base = random.one_of<int64_t>({1, 1, 4, 12});
  form.power = int64_t{16} << random.number(0, form.base == 1 ? 6 : 3);
  form.dim = form.size() * random.number(1, 3);
  form.rows = random.number(0, 5);
  form.scale = random.uniform(0.1f, 2);
  form.type = static_cast<Float>(random.number(0, 2));
  Turn turn{form, Exact<float>(form.base > 1 ? form.base * form.base : 0), Exact<float>(form.dim),
            Exact<float>(form.dim)};
  fill_normal(random, turn.factor);
  fill_normal(random, turn.before);
  fill_normal(random, turn.after);
  if (form.base > 1) turn.form.factor = turn.factor.data();
  if (random.coin()) turn.form.before = turn.before.data();
  if (random.coin()) turn.form.after = turn.after.data();
  return turn;
}

void against_the_matrix(const Kernels& kernels, const Turn& turn, const Rows& x, int threads) {
  const Hadamard& form = turn.form;
  const int64_t size = form.size(), power = form.power;
  Result y(form.type, form.rows * form.dim);
  kernels.hadamard(form, x.data(), y.output(nullptr).y, threads);
  Exact<double> mixed(size), sizes(size);
  for (int64_t start = 0; start < form.rows * form.dim; start += size) {
    const int64_t row = start / form.dim, channel = start % form.dim;
    if (x.bad[static_cast<size_t>(row)]) continue;
    for (int64_t i = 0; i < size; ++i) {
      mixed[i] = sizes[i] = 0;
      for (int64_t b = 0; b < form.base; ++b) {
        const int64_t from = b * power + i % power;
        double value = x.values[start + from];
        if (form.before) value *= form.before[channel + from];
        if (form.factor) value *= form.factor[i / power * form.base + b];
        mixed[i] += value, sizes[i] += std::fabs(value);
      }
    }
    for (int64_t i = 0; i < size; ++i) {
      double sum = 0, most = 0;
      for (int64_t j = 0; j < power; ++j) {
        const bool minus = std::popcount(static_cast<uint64_t>(i % power & j)) % 2;
        sum += minus ? -mixed[i / power * power + j] : mixed[i / power * power + j];
        most += sizes[i / power * power + j];
      }
      const double factor = form.scale * (form.after ? double{form.after[channel + i]} : 1.0);
      check(y.holds(start + i, factor * sum, std::fabs(factor) * most),
            "a transform of " + std::to_string(form.base) + " times " + std::to_string(power) + " channels");
    }
  }
}

// Whole numbers stay whole: the transform of the transform is `power` times what it was, to the last bit.
void twice(const Kernels& kernels, Random& random, int threads) {
  Hadamard form;
  form.power = int64_t{16} << random.number(0, 9);
  form.dim = form.power * random.number(1, 2);
  form.rows = random.number(1, 4);
  Exact<float> x(form.rows * form.dim), once(x.size()), again(x.size());
  for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(random.number(-100, 100));
  kernels.hadamard(form, x.data(), once.data(), threads);
  kernels.hadamard(form, once.data(), again.data(), threads);
  for (int64_t i = 0; i < x.size(); ++i)
    check(again[i] == static_cast<float>(form.power) * x[i], "a transform is its own inverse");
  kernels.hadamard(form, once.data(), once.data(), threads);
  for (int64_t i = 0; i < x.size(); ++i) check(once[i] == again[i], "a transform in place");
}

}  // namespace

void test_hadamard(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    const int threads = static_cast<int>(random.number(1, 4));
    const Turn made = random_turn(random);
    const Rows x = rows_of(random, made.form.rows, made.form.dim, made.form.type);
    against_the_matrix(kernels, made, x, threads);
    twice(kernels, random, threads);
  }
}

}  // namespace bw::test
