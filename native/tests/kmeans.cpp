// Tables of levels: the best clusters of few values by trying them all, and order, range and cost of many.
#include "core/kmeans.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "tests/check.h"

namespace bw::test {
namespace {

struct Problem {
  Lines lines;
  Exact<double> values, mass, moment;
  Exact<int64_t> places;

  double weight(int64_t line, int64_t i) const {
    return mass[line * (lines.count + 1) + i + 1] - mass[line * (lines.count + 1) + i];
  }
  // The weighted squared distance of a line's values from its centres.
  double cost(int64_t line, const float* centres) const {
    double total = 0;
    for (int64_t i = 0; i < lines.count; ++i) {
      double least = std::numeric_limits<double>::infinity();
      for (int64_t c = 0; c < lines.levels; ++c)
        least = std::min(least, std::pow(values[line * lines.count + i] - centres[c], 2));
      total += weight(line, i) * least;
    }
    return total;
  }
};

Problem random_problem(Random& random, Lines lines) {
  Problem p{lines, Exact<double>(lines.lines * lines.count), Exact<double>(lines.lines * (lines.count + 1)),
            Exact<double>(lines.lines * (lines.count + 1)), Exact<int64_t>(lines.lines * (lines.cells + 1))};
  for (int64_t line = 0; line < lines.lines; ++line) {
    double* values = p.values.data() + line * lines.count;
    const bool few = random.number(0, 3) == 0;  // equal values
    for (int64_t i = 0; i < lines.count; ++i) values[i] = few ? random.number(0, 2) : random.normal();
    std::sort(values, values + lines.count);
    const int64_t first = line * (lines.count + 1);
    const bool weighted = random.coin();
    for (int64_t i = 0; i < lines.count; ++i) {
      const double weight = weighted ? std::max(0.0f, random.normal()) : 1.0;
      p.mass[first + i + 1] = p.mass[first + i] + weight;
      p.moment[first + i + 1] = p.moment[first + i] + weight * values[i];
    }
    int64_t* places = p.places.data() + line * (lines.cells + 1);
    for (int64_t c = 0; c <= lines.cells; ++c) places[c] = c * lines.count / lines.cells;
  }
  p.lines.values = p.values.data(), p.lines.mass = p.mass.data();
  p.lines.moment = p.moment.data(), p.lines.places = p.places.data();
  return p;
}

// The least cost of `levels` intervals of the values from `start` on.
double best(const Problem& p, int64_t line, int64_t start, int64_t levels) {
  if (start == p.lines.count) return 0;
  if (levels == 0) return std::numeric_limits<double>::infinity();
  double least = std::numeric_limits<double>::infinity(), mass = 0, moment = 0, square = 0;
  for (int64_t i = start; i < p.lines.count; ++i) {
    const double value = p.values[line * p.lines.count + i], weight = p.weight(line, i);
    mass += weight, moment += weight * value, square += weight * value * value;
    const double cost = mass > 0 ? std::max(0.0, square - moment * moment / mass) : 0;
    least = std::min(least, cost + best(p, line, i + 1, levels - 1));
  }
  return least;
}

}  // namespace

void test_kmeans(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    Lines lines;
    lines.lines = random.number(0, 5);
    const bool tiny = random.coin();
    lines.count = random.number(1, tiny ? 9 : 300);
    lines.levels = random.number(2, tiny ? 4 : 40);
    lines.cells = tiny ? lines.count : random.number(1, 50);
    lines.steps = static_cast<int>(random.number(0, 20));
    lines.swaps = static_cast<int>(random.number(0, 5));
    const Problem p = random_problem(random, lines);
    Exact<float> centres(lines.lines * lines.levels), again(centres.size());
    kernels.kmeans(p.lines, centres.data(), static_cast<int>(random.number(1, 4)));
    Lines started = p.lines;
    started.steps = started.swaps = 0;
    kernels.kmeans(started, again.data(), 1);
    for (int64_t line = 0; line < lines.lines; ++line) {
      const float* here = centres.data() + line * lines.levels;
      const double first = p.values[line * lines.count], last = p.values[(line + 1) * lines.count - 1];
      for (int64_t c = 0; c < lines.levels; ++c) {
        check(c == 0 || here[c - 1] <= here[c], "centres ascend");
        check(here[c] >= first - 1e-6 && here[c] <= last + 1e-6, "a centre lies among the values");
      }
      const double cost = p.cost(line, here), grain = 1e-5 * static_cast<double>(lines.count);
      check(cost <= p.cost(line, again.data() + line * lines.levels) + grain, "steps and swaps make nothing worse");
      // With a border behind every value the first clusters are the best ones.
      if (tiny) check(std::fabs(cost - best(p, line, 0, lines.levels)) <= grain, "the best clusters of few values");
    }
  }
}

}  // namespace bw::test
