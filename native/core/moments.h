// A running sum of the tokens' outer products, as its kernel sees it.
#pragma once

#include <cstdint>

#include "core/weight.h"

namespace bw {

constexpr int64_t kMomentTile = 32;  // channels of a tile

struct Moments {
  int64_t tokens = 0;
  int64_t dim = 0;
  const void* x = nullptr;  // [tokens][dim]
  Float type = Float::f32;  // of x
  float* total = nullptr;   // [dim][dim]; one of the two is null
  double* total64 = nullptr;

  int64_t tiles() const { return (dim + kMomentTile - 1) / kMomentTile; }
};

}  // namespace bw
