// The column sweep against one fused operation after the other in the order that is promised: equal to the last bit.
#include "core/sweep.h"

#include <limits>
#include <numeric>
#include <vector>

#include "tests/rounding.h"

namespace bw::test {
namespace {

// A sweep with everything that it points to, and what it computes, row by row and column by column of the sweep.
struct Problem {
  Sweep sweep;
  Exact<float> w, upper, carry, target, history;
  Exact<int64_t> order;
  Exact<float> current, value;  // [out][in] by places of the sweep
  std::string text;

  float weight(int64_t row, int64_t place) const { return w[row * sweep.in + order[place]]; }
  // What a column would be now: the columns before `first` are rounded, those from there on are as they would be
  // without rounding and carry nothing on.
  float now(int64_t row, int64_t place, int64_t first, const float* unrounded) const {
    float sum = weight(row, place);
    for (int64_t j = 0; j < place; ++j) {
      const bool rounded = j < first;
      const float error = weight(row, j) - (rounded ? value[row * sweep.in + j] : unrounded[j]);
      sum = std::fma(upper[j * sweep.in + place], error, sum);
      if (sweep.carry) sum = std::fma(carry[j * sweep.in + place], rounded ? current[row * sweep.in + j] : 0.0f, sum);
    }
    return sum;
  }
};

Problem random_problem(Random& random) {
  Sweep sweep;
  sweep.out = random.number(1, 80);
  sweep.in = random.one_of<int64_t>({1, 2, 7, 8, 9, 33, 130, 200});
  const bool carries = random.coin();
  const int64_t square = sweep.in * sweep.in, places = sweep.tiles() * sweep.in * kSweepRows;
  Problem p{sweep,
            Exact<float>(sweep.out * sweep.in),
            Exact<float>(square),
            Exact<float>(carries ? square : 0),
            Exact<float>(places),
            Exact<float>(places * (carries ? 2 : 1)),
            Exact<int64_t>(sweep.in),
            Exact<float>(sweep.out * sweep.in),
            Exact<float>(sweep.out * sweep.in),
            ""};
  for (int64_t i = 0; i < p.w.size(); ++i) p.w[i] = random.normal();
  const float size = 1.0f / static_cast<float>(sweep.in);
  // Nothing on or below the diagonal is read into a result.
  constexpr float kNever = std::numeric_limits<float>::quiet_NaN();
  for (int64_t i = 0; i < square; ++i) p.upper[i] = i % sweep.in > i / sweep.in ? size * random.normal() : kNever;
  for (int64_t i = 0; i < p.carry.size(); ++i)
    p.carry[i] = i % sweep.in > i / sweep.in ? size * random.normal() : kNever;
  std::iota(p.order.data(), p.order.data() + sweep.in, 0);
  for (int64_t i = sweep.in - 1; i > 0; --i) std::swap(p.order[i], p.order[random.number(0, i)]);
  Sweep& made = p.sweep;
  made.upper = p.upper.data(), made.order = p.order.data();
  made.target = p.target.data(), made.history = p.history.data();
  if (carries) made.carry = p.carry.data();
  p.text = std::to_string(sweep.out) + "x" + std::to_string(sweep.in) + (carries ? " with a carry" : "");
  return p;
}

int64_t panels(int64_t columns) { return (columns + kSweepPanel - 1) / kSweepPanel * kSweepPanel; }

// The columns take in what the finished ones feed back; the scratch memory has exactly what is promised.
void feed(const Kernels& kernels, Problem& p, const Columns& x, int64_t from, int64_t to, int64_t first, int64_t last,
          int threads) {
  if (from >= to || first >= last) return;
  Exact<float> factors(panels(last - first) * std::min(to - from, kSweepRun) * p.sweep.feeds());
  kernels.sweep_feed(p.sweep, x, from, to, first, last, factors.data(), threads);
}

// Without rounding: a look at the columns first .. last, which leaves everything but the history as it was.
void look(const Kernels& kernels, Problem& p, const Columns& x, int64_t first, int64_t last, int64_t stride,
          int threads) {
  Exact<float> current(p.sweep.out * stride), factors(panels(last - first) * (last - first) * p.sweep.feeds());
  kernels.sweep_look(p.sweep, x, first, last, current.data(), stride, factors.data(), threads);
  std::vector<float> seen(static_cast<size_t>(p.sweep.in));
  for (int64_t row = 0; row < p.sweep.out; ++row) {
    for (int64_t k = first; k < last; ++k) {
      seen[static_cast<size_t>(k)] = p.now(row, k, first, seen.data());
      check(current[row * stride + k - first] == seen[static_cast<size_t>(k)], "a look ahead: " + p.text);
    }
  }
}

void round_piece(const Kernels& kernels, Problem& p, const Columns& x, int64_t first, int64_t last, const Rule& rule,
                 Exact<uint8_t>& codes, int threads) {
  Exact<float> factors(panels(last - first) * (last - first) * p.sweep.feeds());
  kernels.sweep_round(p.sweep, x, first, last, rule.rounding, codes.data(), factors.data(), threads);
  for (int64_t row = 0; row < p.sweep.out; ++row) {
    for (int64_t k = first; k < last; ++k) {
      uint8_t code = 0;
      const int64_t place = row * p.sweep.in + k;
      p.current[place] = p.now(row, k, k, nullptr);
      p.value[place] = rule.value(p.current[place], k, row, code);
      check(codes[row * p.sweep.in + p.order[k]] == code, "a code of a sweep: " + p.text);
    }
  }
}

// Windows and pieces of any width.
void sweep(const Kernels& kernels, Random& random, int threads) {
  Problem p = random_problem(random);
  const Rule rule = random_rule(random, p.sweep.out, p.sweep.in);
  const int64_t in = p.sweep.in;
  Exact<uint8_t> codes(p.sweep.out * in);
  kernels.sweep_load(p.sweep, p.w.data(), threads);
  for (int64_t start = 0; start < in;) {
    const int64_t stop = std::min(in, start + random.one_of<int64_t>({1, 8, 20, 64, 200}));
    Exact<float> memory(p.sweep.tiles() * (stop - start) * kSweepRows);
    const Columns x{start, stop - start, memory.data()};
    kernels.sweep_begin(p.sweep, x, threads);
    feed(kernels, p, x, 0, start, start, stop, threads);
    for (int64_t first = start; first < stop;) {
      const int64_t last = std::min(stop, first + random.number(1, random.coin() ? 10 : kSweepPiece));
      if (random.number(0, 3) == 0) look(kernels, p, x, first, last, last - first + random.number(0, 2), threads);
      round_piece(kernels, p, x, first, last, rule, codes, threads);
      feed(kernels, p, x, first, last, last, stop, threads);
      first = last;
    }
    start = stop;
  }
  Exact<float> values(p.sweep.out * in);
  kernels.sweep_values(p.sweep, values.data(), threads);
  for (int64_t row = 0; row < p.sweep.out; ++row)
    for (int64_t k = 0; k < in; ++k)
      check(values[row * in + p.order[k]] == p.value[row * in + k], "a value of a sweep: " + p.text);
}

// Without feedback every weight goes to its nearest level by itself.
void nearest(const Kernels& kernels, Random& random, int threads) {
  Problem p = random_problem(random);
  for (Exact<float>* part : {&p.upper, &p.carry}) std::fill(part->data(), part->data() + part->size(), 0.0f);
  const Rule rule = random_rule(random, p.sweep.out, p.sweep.in);
  const int64_t in = p.sweep.in;
  Exact<uint8_t> codes(p.sweep.out * in);
  Exact<float> memory(p.sweep.tiles() * in * kSweepRows);
  const Columns x{0, in, memory.data()};
  kernels.sweep_load(p.sweep, p.w.data(), threads);
  kernels.sweep_begin(p.sweep, x, threads);
  for (int64_t first = 0; first < in; first += kSweepPiece) {
    const int64_t last = std::min(in, first + kSweepPiece);
    Exact<float> factors(panels(last - first) * (last - first) * p.sweep.feeds());
    kernels.sweep_round(p.sweep, x, first, last, rule.rounding, codes.data(), factors.data(), threads);
  }
  for (int64_t row = 0; row < p.sweep.out; ++row) {
    for (int64_t k = 0; k < in; ++k) {
      uint8_t code = 0;
      rule.value(p.weight(row, k), k, row, code);
      check(codes[row * in + p.order[k]] == code, "a nearest level: " + p.text);
    }
  }
}

}  // namespace

void test_sweep(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    const int threads = static_cast<int>(random.number(1, 4));
    sweep(kernels, random, threads);
    nearest(kernels, random, threads);
  }
}

}  // namespace bw::test
