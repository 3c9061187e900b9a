// How 16 current values of a column become levels.
#pragma once

#include <cmath>

#include "core/sweep.h"
#include "simd/simd.h"

namespace bw::BW_ISA {

// Every rule has: value(c, place, row, codes): the level nearest to the current values c of 16 rows from `row` on, and
// their codes. Values that are no numbers go to the lowest level.

struct ToInteger {
  const Rounding& rounding;
  int64_t rows;

  F32x16 value(F32x16 c, int64_t k, int64_t row, uint8_t* codes) const {
    const int64_t place = rounding.parameter[k] * rows + row;
    const F32x16 scale = load(rounding.scale + place), low = splat(rounding.low);
    F32x16 x = div(c, scale);
    if (rounding.zero) x = add(x, load(rounding.zero + place));
    F32x16 level = min(max(round_even(x), low), splat(rounding.high));
    store_low_bytes(reinterpret_cast<int8_t*>(codes), to_i32(sub(level, low)));
    if (rounding.zero) level = sub(level, load(rounding.zero + place));
    return mul(level, scale);
  }
};

struct ToLevel {
  const Rounding& rounding;
  int64_t rows;

  F32x16 value(F32x16 c, int64_t k, int64_t row, uint8_t* codes) const {
    const F32x16 scale = load(rounding.scale + rounding.parameter[k] * rows + row);
    const F32x16 x = div(c, scale);
    I32x16 place = zero_i32();
    for (int b = 0; b + 1 < rounding.count; ++b) place = count_greater(place, x, splat(rounding.borders[b]));
    alignas(64) float scaled[16];
    store(scaled, x);
    store_low_bytes(reinterpret_cast<int8_t*>(codes), place);
    for (int r = 0; r < 16; ++r) codes[r] = rounding.codes[(std::signbit(scaled[r]) ? rounding.count : 0) + codes[r]];
    return mul(gather(rounding.table, place), scale);
  }
};

struct ToRowLevel {
  const Rounding& rounding;
  int64_t rows;

  F32x16 value(F32x16 c, int64_t k, int64_t row, uint8_t* codes) const {
    const int64_t set = rounding.parameter[k];
    const float* borders = rounding.borders + set * (rounding.count - 1) * rows + row;
    I32x16 place = zero_i32();
    for (int b = 0; b + 1 < rounding.count; ++b) place = count_greater(place, c, load(borders + b * rows));
    store_low_bytes(reinterpret_cast<int8_t*>(codes), place);
    const float* table = rounding.table + set * rounding.count * rows + row;
    alignas(64) float values[16];
    for (int r = 0; r < 16; ++r) values[r] = table[codes[r] * rows + r];
    return load(values);
  }
};

// Calls body(rule) with the rule for rows padded to `rows`.
template <class Body>
inline void with_rule(const Rounding& rounding, int64_t rows, Body&& body) {
  switch (rounding.kind) {
    case Rounding::affine: return body(ToInteger{rounding, rows});
    case Rounding::levels: return body(ToLevel{rounding, rows});
    case Rounding::row_table: return body(ToRowLevel{rounding, rows});
  }
}

}  // namespace bw::BW_ISA
