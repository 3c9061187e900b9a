// Groups of neighbouring values that share a scale, and how they are rounded to the nearest level.
#pragma once

#include <cstdint>

#include "core/weight.h"

namespace bw {

// Lines of `length` values, cut into groups of `size`; the last group of a line may be shorter.
struct Groups {
  int64_t lines = 0;
  int64_t length = 0;
  int64_t size = 1;

  int64_t of_line() const { return (length + size - 1) / size; }
  int64_t count() const { return lines * of_line(); }
};

struct Nearest {
  enum Kind : int { integers = 0, table = 1 };
  Kind kind = integers;
  const float* scale = nullptr;    // [groups]
  const float* zero = nullptr;     // [groups], or null; integers only
  float low = 0, high = 0;         // integers: the ends; the code is level - low
  int count = 0;                   // table: 1 to 64 levels, ascending
  const float* borders = nullptr;  // [count - 1]: x / scale > border goes higher
  const float* levels = nullptr;   // [2][count]: what the codes below stand for
  const float* codes = nullptr;    // [2][count]: codes of the levels, for x without and with a sign
};

}  // namespace bw
