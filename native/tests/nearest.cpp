// Ranges and rounding of groups against one value at a time.
#include "core/nearest.h"

#include <algorithm>
#include <vector>

#include "core/half.h"
#include "tests/check.h"

namespace bw::test {
namespace {

struct Case {
  Groups groups;
  Float type;
  Exact<float> plain;      // the values as floats
  Exact<uint16_t> halves;  // and as they are handed over, for fp16 and bf16

  Case(Groups given, Float float_type, Random& random)
      : groups(given),
        type(float_type),
        plain(given.lines * given.length),
        halves(float_type == Float::f32 ? 0 : given.lines * given.length) {
    for (int64_t i = 0; i < plain.size(); ++i) {
      const float value = random.number(0, 9) == 0 ? (random.coin() ? 0.0f : -0.0f) : random.normal();
      plain[i] = value;
      if (type == Float::bf16) plain[i] = from_bf16(halves[i] = to_bf16(value));
      if (type == Float::f16) plain[i] = from_f16(halves[i] = to_f16(value));
    }
  }
  const void* x() const {
    return type == Float::f32 ? static_cast<const void*>(plain.data()) : static_cast<const void*>(halves.data());
  }
  // Calls body(group, place) for every value.
  template <class Body>
  void each(const Body& body) const {
    for (int64_t line = 0; line < groups.lines; ++line)
      for (int64_t i = 0; i < groups.length; ++i)
        body(line * groups.of_line() + i / groups.size, line * groups.length + i);
  }
};

void test_limits(const Kernels& kernels, const Case& given, int threads) {
  Exact<float> low(given.groups.count()), high(given.groups.count());
  kernels.group_limits(given.groups, given.x(), given.type, low.data(), high.data(), threads);
  std::vector<float> least(static_cast<size_t>(low.size()), INFINITY), most(least.size(), -INFINITY);
  given.each([&](int64_t group, int64_t place) {
    least[group] = std::min(least[group], given.plain[place]);
    most[group] = std::max(most[group], given.plain[place]);
  });
  for (int64_t g = 0; g < low.size(); ++g) check(low[g] == least[g] && high[g] == most[g], "limits of a group");
}

struct Level {
  float value;
  uint8_t code;
};

// What one value becomes.
Level round_one(const Nearest& nearest, float value, int64_t group) {
  const float x = value / nearest.scale[group];
  if (nearest.kind == Nearest::integers) {
    const float zero = nearest.zero ? nearest.zero[group] : 0.0f;
    // No level is -0.
    const float level =
        std::fmin(std::fmax(std::nearbyint(nearest.zero ? x + zero : x), nearest.low), nearest.high) + 0.0f;
    return {(level - zero) * nearest.scale[group], static_cast<uint8_t>(level - nearest.low)};
  }
  int place = std::signbit(x) ? nearest.count : 0;
  for (int b = 0; b + 1 < nearest.count; ++b) place += x > nearest.borders[b];
  return {nearest.levels[place] * nearest.scale[group], static_cast<uint8_t>(nearest.codes[place])};
}

void test_rounding(const Kernels& kernels, const Case& given, const Nearest& nearest, Random& random, int threads) {
  const bool wide = given.type == Float::f32, coded = random.coin(), valued = !coded || random.coin();
  Exact<uint8_t> codes(coded ? given.plain.size() : 0);
  Exact<float> values(valued && wide ? given.plain.size() : 0);
  Exact<uint16_t> halves(valued && !wide ? given.plain.size() : 0);
  void* place = wide ? static_cast<void*>(values.data()) : static_cast<void*>(halves.data());
  kernels.round_groups(given.groups, nearest, given.x(), given.type, coded ? codes.data() : nullptr,
                       valued ? place : nullptr, threads);
  given.each([&](int64_t group, int64_t i) {
    const Level wanted = round_one(nearest, given.plain[i], group);
    if (coded) check(codes[i] == wanted.code, "code of a value");
    if (valued && wide) check(values[i] == wanted.value, "value of a level");
    if (valued && given.type == Float::bf16) check(halves[i] == to_bf16(wanted.value), "value of a level as bf16");
    if (valued && given.type == Float::f16) check(halves[i] == to_f16(wanted.value), "value of a level as fp16");
  });
}

}  // namespace

void test_nearest(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    const Groups groups{random.number(1, 9), random.one_of<int64_t>({1, 15, 16, 17, 64, 100, 1000}),
                        random.one_of<int64_t>({1, 7, 16, 20, 128, 5000})};
    const Case given(groups, random.one_of({Float::f32, Float::f16, Float::bf16}), random);
    const int threads = static_cast<int>(random.number(1, 4));
    test_limits(kernels, given, threads);
    Exact<float> scale(groups.count()), zero(groups.count());
    for (int64_t g = 0; g < scale.size(); ++g) scale[g] = random.uniform(0.01f, 1.0f), zero[g] = random.number(0, 15);
    Nearest nearest;
    nearest.scale = scale.data();
    nearest.zero = random.coin() ? zero.data() : nullptr;
    nearest.low = static_cast<float>(random.number(-128, 0));
    nearest.high = nearest.low + static_cast<float>(random.number(0, 255));
    test_rounding(kernels, given, nearest, random, threads);
    nearest.kind = Nearest::table;
    nearest.count = static_cast<int>(random.number(1, 40));
    Exact<float> borders(nearest.count - 1), levels(2 * nearest.count), codes(2 * nearest.count);
    for (int64_t i = 0; i < borders.size(); ++i)
      borders[i] = (i ? borders[i - 1] : -4.0f) + random.uniform(0.01f, 0.4f);
    for (int64_t i = 0; i < levels.size(); ++i) levels[i] = random.normal(), codes[i] = random.number(0, 255);
    nearest.borders = borders.data();
    nearest.levels = levels.data();
    nearest.codes = codes.data();
    test_rounding(kernels, given, nearest, random, threads);
  }
}

}  // namespace bw::test
