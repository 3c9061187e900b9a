// Coordinate descent over columns as its kernel sees it; the layout is that of a sweep.
#pragma once

#include "core/sweep.h"

namespace bw {

struct Descent {
  int64_t out = 0;
  int64_t in = 0;
  const float* moments = nullptr;  // [in][in], symmetric
  const float* inverse = nullptr;  // [in]: 1 / diagonal
  const float* weight = nullptr;   // [tiles][in][32]
  float* value = nullptr;          // [tiles][in][32]
  float* error = nullptr;          // [tiles][in][32]: weight - value

  int64_t tiles() const { return (out + kSweepRows - 1) / kSweepRows; }
};

}  // namespace bw
