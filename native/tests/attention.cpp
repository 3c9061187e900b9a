// Attention over float and coded states against the softmax in double precision.
#include "core/attention.h"

#include <algorithm>
#include <limits>

#include "tests/cached.h"

namespace bw::test {
namespace {

struct Query {
  int rows;
  int64_t stride;
  Exact<float> values;
  Exact<int64_t> first, last;
  float cap;
};

Query random_query(Random& random, int64_t dim, int64_t tokens) {
  const int rows = static_cast<int>(random.number(1, kQueries));
  Query query{rows,
              (dim + 63) / 64 * 64,
              Exact<float>(rows * ((dim + 63) / 64 * 64)),
              Exact<int64_t>(rows),
              Exact<int64_t>(rows),
              random.one_of({0.0f, 0.0f, 3.0f})};
  const float size = random.one_of({0.2f, 1.0f, 5.0f});
  for (int r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < dim; ++d) query.values[r * query.stride + d] = size * random.normal();
    query.first[r] = random.number(0, tokens - 1);
    query.last[r] = random.number(query.first[r] + 1, tokens);
  }
  return query;
}

// The places from the first that any row sees to the last, in one call or in two.
void attend(const Kernels& kernels, Random& random) {
  const int64_t heads = random.number(1, 3), dim = random.one_of<int64_t>({1, 7, 16, 20, 64, 80});
  const int64_t wanted = random.one_of<int64_t>({1, 5, 16, 17, 100, 256, 300, 600});
  const Side keys(random, heads, dim, wanted, true), values(random, heads, dim, wanted, false);
  const int64_t tokens = std::min(keys.tokens, values.tokens), head = random.number(0, heads - 1);
  if (tokens == 0) return;
  const Query query = random_query(random, dim, tokens);
  Exact<float> peak(query.rows), total(query.rows), sums(query.rows * query.stride);
  std::fill(peak.data(), peak.data() + peak.size(), kNothing);
  Attend work;
  work.query = query.values.data(), work.stride = query.stride, work.rows = query.rows, work.head = head;
  work.first = query.first.data(), work.last = query.last.data(), work.cap = query.cap;
  work.keys = keys.coded ? nullptr : &keys.store;
  work.coded_keys = keys.coded ? &keys.coded_store : nullptr;
  work.values = values.coded ? nullptr : &values.store;
  work.coded_values = values.coded ? &values.coded_store : nullptr;
  work.peak = peak.data(), work.total = total.data(), work.sums = sums.data();
  const int64_t start = *std::min_element(work.first, work.first + query.rows);
  const int64_t stop = *std::max_element(work.last, work.last + query.rows), middle = random.number(start, stop);
  for (const auto& [from, to] : {std::pair{start, middle}, std::pair{middle, stop}}) {
    work.start = from, work.stop = to;
    if (from < to) kernels.attend(work);
  }
  const auto at = [&](const Side& side, int64_t token, int64_t d) {
    return side.meant[(token * heads + head) * dim + d];
  };
  for (int r = 0; r < query.rows; ++r) {
    std::vector<double> scores;
    double most = -std::numeric_limits<double>::infinity(), all = 0, size = 0;
    for (int64_t t = query.first[r]; t < query.last[r]; ++t) {
      double score = 0, here = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const double part = double{query.values[r * query.stride + d]} * at(keys, t, d);
        score += part, here += std::fabs(part);
      }
      // Coded keys are summed with their codes, the zero points are taken off at the end.
      size = std::max(size, here);
      scores.push_back(query.cap > 0 ? query.cap * std::tanh(score / query.cap) : score);
      most = std::max(most, scores.back());
    }
    for (double& score : scores) all += score = std::exp(score - most);
    for (int64_t d = 0; d < dim; ++d) {
      double mixed = 0;
      for (size_t i = 0; i < scores.size(); ++i)
        mixed += scores[i] / all * at(values, query.first[r] + static_cast<int64_t>(i), d);
      const double got = double{sums[r * query.stride + d]} / total[r];
      check(std::fabs(got - mixed) <= 2e-5 * (20 + 20 * size), "attention over " + std::to_string(tokens) + " tokens");
    }
  }
}

}  // namespace

void test_attention(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) attend(kernels, random);
}

}  // namespace bw::test
