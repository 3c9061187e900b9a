// A blockwise Hadamard transform as its kernel sees it.
#pragma once

#include <cstdint>

#include "core/weight.h"

namespace bw {

// Rows of `dim` channels are cut into blocks of base * power channels, power = 2^k >= 16. A block is read as a matrix
// [base][power]; its rows are mixed by `factor`, then Sylvester's matrix of order `power` turns each of them.
struct Hadamard {
  int64_t rows = 0;
  int64_t dim = 0;
  int64_t base = 1;
  int64_t power = 16;
  const float* factor = nullptr;  // [base][base]: row b is what output row b is made of; null for base 1
  const float* before = nullptr;  // [dim]: factors of the channels before the transform, or null
  const float* after = nullptr;   // [dim]: and after it, or null
  float scale = 1;                // of everything
  Float type = Float::f32;        // of the input and of the output

  int64_t size() const { return base * power; }
};

}  // namespace bw
