// Roundings of columns at random, and how one value is rounded, for the sweep and the descent.
#pragma once

#include <algorithm>
#include <string>

#include "core/sweep.h"
#include "tests/check.h"

namespace bw::test {

// A rounding with everything that it points to.
struct Rule {
  Rounding rounding;
  int64_t rows = 0;  // padded to whole tiles
  Exact<int32_t> parameter;
  Exact<float> scale, zero, table, borders;
  Exact<uint8_t> codes;

  // The level of a current value at a place of the sweep, and its code.
  float value(float current, int64_t place, int64_t row, uint8_t& code) const {
    const int64_t set = parameter[place], at = set * rows + row;
    if (rounding.kind == Rounding::affine) {
      float x = current / scale[at];
      if (rounding.zero) x += zero[at];
      const float level = std::fmin(std::fmax(std::nearbyint(x), rounding.low), rounding.high);
      code = static_cast<uint8_t>(level - rounding.low);
      return (rounding.zero ? level - zero[at] : level) * scale[at];
    }
    const bool shared = rounding.kind == Rounding::levels;
    const float x = shared ? current / scale[at] : current;
    int found = 0;
    for (int b = 0; b + 1 < rounding.count; ++b)
      found += x > (shared ? borders[b] : borders[(set * (rounding.count - 1) + b) * rows + row]);
    code = shared ? codes[(std::signbit(x) ? rounding.count : 0) + found] : static_cast<uint8_t>(found);
    return shared ? table[found] * scale[at] : table[(set * rounding.count + found) * rows + row];
  }
};

inline Rule random_rule(Random& random, int64_t out, int64_t in) {
  Rounding rounding;
  rounding.kind = static_cast<Rounding::Kind>(random.number(0, 2));
  rounding.parameters = random.number(1, 3);
  rounding.count = static_cast<int>(random.one_of({1, 2, 5, 16, 256}));
  const int64_t rows = (out + kSweepRows - 1) / kSweepRows * kSweepRows, sets = rounding.parameters * rows;
  const bool affine = rounding.kind == Rounding::affine, shared = rounding.kind == Rounding::levels;
  const int64_t tables = affine ? 0 : shared ? 1 : sets;
  Rule rule{rounding,
            rows,
            Exact<int32_t>(in),
            Exact<float>(rounding.kind == Rounding::row_table ? 0 : sets),
            Exact<float>(affine ? sets : 0),
            Exact<float>(tables * rounding.count),
            Exact<float>(tables * (rounding.count - 1)),
            Exact<uint8_t>(shared ? 2 * rounding.count : 0)};
  for (int64_t k = 0; k < in; ++k) rule.parameter[k] = static_cast<int32_t>(random.number(0, rounding.parameters - 1));
  for (int64_t i = 0; i < rule.scale.size(); ++i) rule.scale[i] = random.uniform(0.05f, 0.5f);
  for (int64_t i = 0; i < rule.zero.size(); ++i) rule.zero[i] = static_cast<float>(random.number(0, 15));
  for (int64_t t = 0; t < tables; ++t) {
    // Table t: its level n at n, or n rows further where every row has one.
    const int64_t step = shared ? 1 : rows, first = shared ? 0 : t / rows * rounding.count * rows + t % rows;
    const int64_t border = shared ? 0 : t / rows * (rounding.count - 1) * rows + t % rows;
    float level = random.uniform(-4, 0);
    for (int n = 0; n < rounding.count; ++n, level += random.uniform(0, 1)) rule.table[first + n * step] = level;
    for (int n = 0; n + 1 < rounding.count; ++n)
      rule.borders[border + n * step] = (rule.table[first + n * step] + rule.table[first + (n + 1) * step]) / 2;
  }
  for (int64_t i = 0; i < rule.codes.size(); ++i) rule.codes[i] = static_cast<uint8_t>(random.number(0, 255));
  Rounding& made = rule.rounding;
  made.parameter = rule.parameter.data();
  made.scale = rule.scale.data();
  if (random.coin()) made.zero = rule.zero.data();
  made.low = made.zero ? 0.0f : -8.0f;
  made.high = made.low + static_cast<float>(random.one_of({1, 15, 255}));
  made.table = rule.table.data();
  made.borders = rule.borders.data();
  made.codes = rule.codes.data();
  return rule;
}

}  // namespace bw::test
