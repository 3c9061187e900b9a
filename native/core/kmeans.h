// One-dimensional weighted k-means as its kernel sees it.
#pragma once

#include <cstdint>

namespace bw {

// Lines of sorted values with the prefix sums of their weights and of weight times value.
struct Lines {
  int64_t lines = 0;
  int64_t count = 0;  // values of a line
  int64_t cells = 0;  // cells of the grid on which the first clusters have their borders
  int64_t levels = 0;
  int steps = 0;  // most steps of Lloyd's algorithm from each start
  int swaps = 0;
  const double* values = nullptr;   // [lines][count], ascending
  const double* mass = nullptr;     // [lines][count + 1]
  const double* moment = nullptr;   // [lines][count + 1]
  const int64_t* places = nullptr;  // [lines][cells + 1], ascending in 0 .. count
};

}  // namespace bw
