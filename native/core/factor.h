// H = (U + I) D (U + I)^T with strictly upper triangular U, as its kernel sees it.
#pragma once

#include <cstdint>

namespace bw {

constexpr int64_t kFactorTile = 32;    // rows of a tile
constexpr int64_t kFactorBlock = 256;  // columns that are finished together

struct Factorization {
  int64_t size = 0;
  const float* matrix = nullptr;    // [size][size], symmetric; what is above the diagonal is read
  const float* diagonal = nullptr;  // [size], instead of the matrix's own
  float* upper = nullptr;           // [size][size], zeros at first; then U
  float* pivots = nullptr;          // [size], D
};

}  // namespace bw
