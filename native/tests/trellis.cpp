// Trellis codes against plain loops: every path of Viterbi's algorithm, states bit by bit, products in doubles.
#include <cstring>
#include <limits>
#include <vector>

#include "core/half.h"
#include "core/trellis.h"
#include "tests/check.h"

namespace bw::test {
namespace {

struct Shape {
  int bits, state_bits;
  int64_t span;
  std::string text;
};

Shape shape_of(Random& random, bool product) {
  Shape s;
  s.bits = static_cast<int>(random.number(1, 4));
  const int64_t least = s.bits + 4 > 2 * s.bits ? s.bits + 4 : 2 * s.bits;
  s.state_bits = static_cast<int>(random.number(least, product ? 16 : 9));
  s.span = product ? 32 * random.number(1, 8) : random.number((s.state_bits + s.bits - 1) / s.bits, 40);
  s.text = std::to_string(s.bits) + " bits, states of " + std::to_string(s.state_bits) + ", runs of " +
           std::to_string(s.span);
  return s;
}

// The state of a column, from its run's codes read around.
int64_t plain_state(const uint8_t* codes, const Shape& s, int64_t column) {
  int64_t state = 0;
  for (int64_t back = 0; back * s.bits < s.state_bits; ++back)
    state |= int64_t{codes[((column - back) % s.span + s.span) % s.span]} << (back * s.bits);
  return state & ((int64_t{1} << s.state_bits) - 1);
}

// -- search -----------------------------------------------------------------------------------------------------

using Costs = std::vector<float>;

// Viterbi's algorithm over all states of all columns; the places of the best path before each column, and at the end.
struct Path {
  std::vector<int64_t> states;
  int64_t end = 0;
};

Path best_path(const TrellisSearch& search, const std::vector<int64_t>& columns, Costs worth, int64_t end) {
  const int64_t kept = search.kept(), k = search.bits, states = kept << k;
  std::vector<std::vector<int64_t>> from(columns.size(), std::vector<int64_t>(static_cast<size_t>(kept)));
  for (size_t i = 0; i < columns.size(); ++i) {
    Costs cost(static_cast<size_t>(states)), next(static_cast<size_t>(kept));
    for (int64_t s = 0; s < states; ++s) {
      const float miss = search.x[columns[i]] - search.values[s];
      const float weight = search.importance ? search.importance[columns[i]] * miss : miss;
      cost[static_cast<size_t>(s)] = std::fma(weight, miss, worth[static_cast<size_t>(s >> k)]);
    }
    for (int64_t q = 0; q < kept; ++q) {
      int64_t best = q;
      for (int64_t s = q; s < states; s += kept)
        if (cost[static_cast<size_t>(s)] < cost[static_cast<size_t>(best)]) best = s;
      next[static_cast<size_t>(q)] = cost[static_cast<size_t>(best)];
      from[i][static_cast<size_t>(q)] = best;
    }
    worth = next;
  }
  Path path;
  for (int64_t q = 1; q < kept && end < 0; ++q)
    if (worth[static_cast<size_t>(q)] < worth[static_cast<size_t>(path.end)]) path.end = q;
  if (end >= 0) path.end = end;
  path.states.resize(columns.size());
  int64_t q = path.end;
  for (size_t i = columns.size(); i-- > 0; q = path.states[i] >> k) path.states[i] = from[i][static_cast<size_t>(q)];
  return path;
}

void check_block(TrellisSearch one, const Shape& s, const uint8_t* codes) {
  std::vector<int64_t> around, straight;
  for (int64_t i = 0; i < 2 * one.around; ++i) around.push_back((s.span - one.around + i) % s.span);
  for (int64_t t = 0; t < s.span; ++t) straight.push_back(t);
  const auto kept = static_cast<size_t>(one.kept());
  const Path free = best_path(one, around, Costs(kept, 0.0f), -1);
  const int64_t seam = free.states[static_cast<size_t>(one.around)] >> s.bits;
  Costs bound(kept, std::numeric_limits<float>::infinity());
  bound[static_cast<size_t>(seam)] = 0;
  const Path path = best_path(one, straight, bound, seam);
  for (int64_t t = 0; t < s.span; ++t) {
    check(codes[t] == (path.states[static_cast<size_t>(t)] & ((1 << s.bits) - 1)), "a trellis code: " + s.text);
    check(plain_state(codes, s, t) == path.states[static_cast<size_t>(t)], "a run bites its tail: " + s.text);
  }
}

void check_search(const Kernels& kernels, Random& random) {
  const Shape s = shape_of(random, false);
  TrellisSearch search;
  search.rows = random.number(0, 3);
  search.columns = s.span * random.number(1, 3);
  search.span = s.span;
  search.bits = s.bits;
  search.state_bits = s.state_bits;
  search.around = random.number(1, s.span);
  Exact<float> values(int64_t{1} << s.state_bits), x(search.rows * search.columns), importance(search.columns);
  Exact<uint8_t> codes(x.size());
  const bool coarse = random.coin();  // many equal costs
  for (int64_t i = 0; i < values.size(); ++i) values[i] = coarse ? std::nearbyint(random.normal()) : random.normal();
  for (int64_t i = 0; i < x.size(); ++i) x[i] = coarse ? 1.0f : random.normal();
  for (int64_t i = 0; i < importance.size(); ++i) importance[i] = random.uniform(0, 2);
  search.values = values.data();
  search.x = x.data();
  if (random.coin()) search.importance = importance.data();
  kernels.trellis_search(search, codes.data(), static_cast<int>(random.number(1, 4)));
  for (int64_t start = 0; start < x.size(); start += s.span) {
    TrellisSearch one = search;
    one.x = search.x + start;
    if (search.importance) one.importance = search.importance + start % search.columns;
    check_block(one, s, codes.data() + start);
  }
}

// -- products ---------------------------------------------------------------------------------------------------

double plain_number(TrellisCode code, int64_t state) {
  if (code == TrellisCode::one_mad) {
    const uint32_t word = static_cast<uint32_t>(state) * 34038481u + 76625530u;
    return double((word & 255) + (word >> 8 & 255) + (word >> 16 & 255) + (word >> 24)) - 510;
  }
  const uint32_t word = static_cast<uint32_t>(state) * 89226354u + 64248484u;
  const auto half = [](uint32_t bits) { return double{from_f16(static_cast<uint16_t>((bits & 0x8fff) ^ 0x3b60))}; };
  return half(word & 0xffff) + half(word >> 16);
}

struct Coded {
  TrellisWeight weight;
  Exact<uint8_t> codes;
  Exact<uint32_t> packed;
  Exact<float> scale;
  Shape shape;

  double value(int64_t row, int64_t column) const {
    const int64_t run = column / shape.span * shape.span;
    const double n = plain_number(weight.code, plain_state(codes.data() + row * weight.in + run, shape, column - run));
    const int64_t group = column / shape.span / weight.blocks_per_scale;
    return (n + double{weight.offset}) * scale.data()[(row / kRows * weight.groups + group) * kRows + row % kRows];
  }
};

Coded make_coded(const Kernels& kernels, Random& random) {
  TrellisWeight w;
  const Shape s = shape_of(random, true);
  w.out = random.number(1, 40);
  w.in = s.span * random.number(1, 3);
  w.span = static_cast<int>(s.span);
  w.bits = s.bits;
  w.state_bits = s.state_bits;
  w.code = random.coin() ? TrellisCode::one_mad : TrellisCode::three_inst;
  w.blocks_per_scale = random.number(1, 3);
  w.groups = (w.blocks() + w.blocks_per_scale - 1) / w.blocks_per_scale;
  w.offset = random.uniform(-0.1f, 0.1f);
  Coded c{w, Exact<uint8_t>(w.out * w.in), Exact<uint32_t>(w.words()), Exact<float>(w.tiles() * w.groups * kRows), s};
  for (int64_t i = 0; i < c.codes.size(); ++i) c.codes[i] = static_cast<uint8_t>(random.number(0, (1 << s.bits) - 1));
  for (int64_t i = 0; i < c.scale.size(); ++i) c.scale[i] = random.uniform(-1, 1);
  kernels.trellis_pack(w, c.codes.data(), c.packed.data(), static_cast<int>(random.number(1, 4)));
  c.weight.codes = c.packed.data();
  c.weight.scale = c.scale.data();
  return c;
}

void check_products(const Kernels& kernels, Random& random) {
  const Coded c = make_coded(kernels, random);
  const TrellisWeight& w = c.weight;
  const int64_t rows = random.number(0, 20), blocks = w.blocks();
  const bool exact = w.code != TrellisCode::one_mad || random.coin();
  const int threads = static_cast<int>(random.number(1, 4));
  Exact<float> x(rows * w.in), y(rows * w.out), bias(w.out), values(rows * w.in), sums(rows * blocks);
  Exact<float> steps(rows * blocks);
  Exact<int8_t> codes(rows * w.in);
  Exact<int32_t> counts(rows * blocks);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = random.normal();
  for (int64_t i = 0; i < bias.size(); ++i) bias[i] = random.normal();
  const Output output{y.data(), Float::f32, bias.data()};
  if (exact) {
    kernels.gather_rows(x.data(), Float::f32, rows, w.in, w.span, values.data(), sums.data(), threads);
    kernels.trellis_float(w, {rows, w.span, blocks, values.data(), sums.data()}, output, threads);
  } else {
    kernels.quantize_rows(x.data(), Float::f32, rows, w.in, w.span, codes.data(), steps.data(), counts.data(), threads);
    kernels.trellis_int8(w, {rows, w.span, blocks, codes.data(), steps.data(), counts.data()}, output, threads);
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t out = 0; out < w.out; ++out) {
      double sum = bias[out], size = std::fabs(sum) + 1;
      for (int64_t k = 0; k < w.in; ++k) {
        const int64_t place = k / w.span * rows + row;
        const double a = exact ? x[row * w.in + k] : codes[place * w.span + k % w.span] * double{steps[place]};
        sum += a * c.value(out, k);
        size += std::fabs(a * c.value(out, k));
      }
      check(std::fabs(y[row * w.out + out] - sum) <= 2e-6 * size, "a product of trellis codes: " + c.shape.text);
    }
  }
}

}  // namespace

void test_trellis(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    check_search(kernels, random);
    check_products(kernels, random);
  }
}

}  // namespace bw::test
