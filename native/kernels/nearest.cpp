// Rounding to nearest: the range of every group, then every value by its group's scale.
//
// Operations and their order are those of the definition on torch (a division, not a product with the reciprocal), so
// codes and values equal it in every bit.
#include "kernels/nearest.h"

#include <cmath>
#include <cstring>

#include "core/pool.h"
#include "kernels/load.h"
#include "simd/simd.h"

namespace bw::BW_ISA {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kChunk = int64_t{1} << 16;  // values of a chunk of work

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// `count` values of x as floats, the last of them again up to a whole vector.
F32x16 load_some(const void* x, Float type, int64_t start, int64_t count) {
  alignas(64) float values[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) values[i] = load_float(x, type, start + smaller(i, count - 1));
  return load(values);
}

// Calls body(values, place, count) for all values from `start` on, at most 16 at a time.
template <class Body>
void each_vector(const void* x, Float type, int64_t start, int64_t count, Body&& body) {
  int64_t k = 0;
  if (type == Float::f32) {
    const float* values = static_cast<const float*>(x) + start;
    for (; k + kLanes <= count; k += kLanes) body(load(values + k), start + k, kLanes);
  } else {
    for (; k + kLanes <= count; k += kLanes) body(load_floats(x, type, start + k), start + k, kLanes);
  }
  if (k < count) body(load_some(x, type, start + k, count - k), start + k, static_cast<int>(count - k));
}

F32x16 lowest_lane(F32x16 x) {
  x = min(x, swap_lanes<8>(x));
  x = min(x, swap_lanes<4>(x));
  x = min(x, swap_lanes<2>(x));
  return min(x, swap_lanes<1>(x));
}

F32x16 highest_lane(F32x16 x) {
  x = max(x, swap_lanes<8>(x));
  x = max(x, swap_lanes<4>(x));
  x = max(x, swap_lanes<2>(x));
  return max(x, swap_lanes<1>(x));
}

float first_lane(F32x16 x) {
  alignas(64) float values[kLanes];
  store(values, x);
  return values[0];
}

void limits_of(const void* x, Float type, int64_t start, int64_t count, float* low, float* high) {
  F32x16 least = splat(INFINITY), most = splat(-INFINITY), probe = zero_f32();
  each_vector(x, type, start, count, [&](F32x16 here, int64_t, int) {
    least = min(here, least);
    most = max(here, most);
    probe = fma(here, zero_f32(), probe);  // stays 0 but for NaN and Inf
  });
  *low = first_lane(lowest_lane(least));
  *high = first_lane(highest_lane(most));
  if (sum(probe) == 0) return;
  for (int64_t i = start; i < start + count; ++i)
    if (std::isnan(load_float(x, type, i))) *low = *high = NAN;
}

struct ToInteger {
  F32x16 scale, zero, low, high;
  bool shifted;

  ToInteger(const Nearest& rounding, int64_t group)
      : scale(splat(rounding.scale[group])),
        zero(rounding.zero ? splat(rounding.zero[group]) : zero_f32()),
        low(splat(rounding.low)),
        high(splat(rounding.high)),
        shifted(rounding.zero) {}

  template <bool coded, bool valued>
  void round(F32x16 x, int8_t* code, F32x16* value) const {
    x = div(x, scale);
    if (shifted) x = add(x, zero);
    F32x16 level = min(max(round_even(x), low), high);
    if constexpr (coded) store_low_bytes(code, to_i32(sub(level, low)));
    if constexpr (valued) {
      level = add(level, zero_f32());  // no level is -0
      if (shifted) level = sub(level, zero);
      *value = mul(level, scale);
    }
  }
};

struct ToLevel {
  const Nearest& rounding;
  F32x16 scale;

  ToLevel(const Nearest& given, int64_t group) : rounding(given), scale(splat(given.scale[group])) {}

  template <bool coded, bool valued>
  void round(F32x16 x, int8_t* code, F32x16* value) const {
    x = div(x, scale);
    I32x16 place = zero_i32();
    for (int b = 0; b + 1 < rounding.count; ++b) place = count_greater(place, x, splat(rounding.borders[b]));
    // A reciprocal shows the sign of a zero too.
    const I32x16 sign = count_greater(zero_i32(), zero_f32(), div(splat(1.0f), x));
    place = add(place, mul(sign, splat_i32(rounding.count)));
    if constexpr (coded) store_low_bytes(code, to_i32(gather(rounding.codes, place)));
    if constexpr (valued) *value = mul(gather(rounding.levels, place), scale);
  }
};

void store_floats(void* values, Float type, int64_t place, F32x16 value) {
  if (type == Float::f32) return store(static_cast<float*>(values) + place, value);
  uint16_t* half = static_cast<uint16_t*>(values) + place;
  return type == Float::f16 ? store_f16(half, value) : store_bf16(half, value);
}

template <bool coded, bool valued, class Rule>
void round_run(const Rule& rule, const void* x, Float type, int64_t start, int64_t count, uint8_t* codes,
               void* values) {
  each_vector(x, type, start, count, [&](F32x16 here, int64_t place, int some) {
    F32x16 value = zero_f32();
    if (some == kLanes) {
      rule.template round<coded, valued>(here, reinterpret_cast<int8_t*>(codes + place), &value);
      if constexpr (valued) store_floats(values, type, place, value);
      return;
    }
    int8_t code[kLanes];
    alignas(64) char rounded[4 * kLanes];
    rule.template round<coded, valued>(here, code, &value);
    if constexpr (coded) std::memcpy(codes + place, code, static_cast<size_t>(some));
    if constexpr (valued) {
      store_floats(rounded, type, 0, value);
      const int64_t bytes = type == Float::f32 ? 4 : 2;
      std::memcpy(static_cast<char*>(values) + place * bytes, rounded, static_cast<size_t>(some * bytes));
    }
  });
}

template <class Rule>
void round_all(const Groups& groups, const Nearest& nearest, const void* x, Float type, uint8_t* codes, void* values,
               int threads) {
  const int64_t longest = smaller(groups.size, groups.length), piece = smaller(longest, kChunk);
  const int64_t cuts = (longest + piece - 1) / piece, pieces = groups.count() * cuts, together = kChunk / piece;
  parallel_for(threads, (pieces + together - 1) / together, [&](int64_t chunk, int) {
    for (int64_t p = chunk * together; p < smaller((chunk + 1) * together, pieces); ++p) {
      const int64_t group = p / cuts, line = group / groups.of_line(), first = group % groups.of_line() * groups.size;
      const int64_t from = first + p % cuts * piece;
      const int64_t stop = smaller(smaller(first + groups.size, groups.length), from + piece);
      if (from >= stop) continue;
      const Rule rule(nearest, group);
      const int64_t start = line * groups.length + from, count = stop - from;
      if (!values) {
        round_run<true, false>(rule, x, type, start, count, codes, values);
      } else if (!codes) {
        round_run<false, true>(rule, x, type, start, count, codes, values);
      } else {
        round_run<true, true>(rule, x, type, start, count, codes, values);
      }
    }
  });
}

}  // namespace

void group_limits(const Groups& groups, const void* x, Float type, float* low, float* high, int threads) {
  const int64_t count = groups.count(), longest = smaller(groups.size, groups.length);
  const int64_t together = longest < kChunk ? kChunk / longest : 1;
  parallel_for(threads, (count + together - 1) / together, [&](int64_t chunk, int) {
    for (int64_t group = chunk * together; group < smaller((chunk + 1) * together, count); ++group) {
      const int64_t line = group / groups.of_line(), first = group % groups.of_line() * groups.size;
      limits_of(x, type, line * groups.length + first, smaller(groups.size, groups.length - first), low + group,
                high + group);
    }
  });
}

void round_groups(const Groups& groups, const Nearest& nearest, const void* x, Float type, uint8_t* codes, void* values,
                  int threads) {
  if (nearest.kind == Nearest::integers) {
    round_all<ToInteger>(groups, nearest, x, type, codes, values, threads);
  } else {
    round_all<ToLevel>(groups, nearest, x, type, codes, values, threads);
  }
}

}  // namespace bw::BW_ISA
