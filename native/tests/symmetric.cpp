// Second moments against sums in double precision; the factor against what it is a factor of.
#include <vector>

#include "core/factor.h"
#include "core/half.h"
#include "core/moments.h"
#include "tests/check.h"

namespace bw::test {
namespace {

void test_moments(const Kernels& kernels, Random& random) {
  Moments moments;
  moments.tokens = random.one_of<int64_t>({0, 1, 5, 127, 129, 300});
  moments.dim = random.one_of<int64_t>({1, 31, 32, 33, 100, 170});
  moments.type = random.one_of({Float::f32, Float::bf16});
  const bool wide = random.coin();
  Exact<float> x(moments.tokens * moments.dim), packed(moments.tiles() * kMomentTile * moments.tokens);
  Exact<uint16_t> halves(moments.type == Float::f32 ? 0 : x.size());
  for (int64_t i = 0; i < x.size(); ++i) {
    x[i] = random.normal();
    if (moments.type == Float::bf16) x[i] = from_bf16(halves[i] = to_bf16(x[i]));
  }
  Exact<float> narrow(wide ? 0 : moments.dim * moments.dim);
  Exact<double> broad(wide ? moments.dim * moments.dim : 0);
  moments.x = moments.type == Float::f32 ? static_cast<const void*>(x.data()) : halves.data();
  (wide ? static_cast<void>(moments.total64 = broad.data()) : static_cast<void>(moments.total = narrow.data()));
  for (int turn = 0; turn < 2; ++turn)
    kernels.add_moments(moments, packed.data(), static_cast<int>(random.number(1, 4)));
  for (int64_t i = 0; i < moments.dim; ++i) {
    for (int64_t j = i; j < moments.dim; ++j) {
      double sum = 0, size = 0;
      for (int64_t t = 0; t < moments.tokens; ++t) {
        const double here = static_cast<double>(x[t * moments.dim + i]) * x[t * moments.dim + j];
        sum += here;
        size += std::fabs(here);
      }
      const double found = wide ? broad[i * moments.dim + j] : narrow[i * moments.dim + j];
      check(std::fabs(found - 2 * sum) <= 2 * size * 140 * 6e-8, "a second moment");
    }
  }
}

void test_factor(const Kernels& kernels, Random& random) {
  Factorization work;
  work.size = random.one_of<int64_t>({1, 7, 32, 33, 100, 256, 300});
  const int64_t n = work.size;
  Exact<float> matrix(n * n), diagonal(n), upper(n * n), pivots(n), packed(n * (n < kFactorBlock ? n : kFactorBlock));
  // Far from singular: entries of a random symmetric matrix beside a large diagonal.
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = i; j < n; ++j) matrix[i * n + j] = random.uniform(-1.0f, 1.0f);
  for (int64_t i = 0; i < n; ++i) diagonal[i] = static_cast<float>(n) + random.uniform(0.0f, 1.0f);
  work.matrix = matrix.data();
  work.diagonal = diagonal.data();
  work.upper = upper.data();
  work.pivots = pivots.data();
  check(kernels.upper_factor(work, packed.data(), static_cast<int>(random.number(1, 4))), "a factor exists");
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      if (j <= i) check(upper[i * n + j] == 0, "zeros on and below the diagonal");
      if (j < i) continue;
      double sum = 0;
      for (int64_t k = j; k < n; ++k)
        sum += static_cast<double>(k == i ? 1.0f : upper[i * n + k]) * pivots[k] * (k == j ? 1.0f : upper[j * n + k]);
      check(std::fabs(sum - (i == j ? diagonal[i] : matrix[i * n + j])) <= 1e-5 * static_cast<double>(n),
            "the product of the factors");
    }
  }
  for (int64_t i = 0; i < upper.size(); ++i) upper[i] = 0;
  diagonal[random.number(0, n - 1)] = random.one_of({0.0f, -1.0f, NAN});
  check(!kernels.upper_factor(work, packed.data(), 2), "no factor where a pivot is not positive");
}

}  // namespace

void test_symmetric(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; turn += 4) {
    test_moments(kernels, random);
    test_factor(kernels, random);
  }
}

}  // namespace bw::test
