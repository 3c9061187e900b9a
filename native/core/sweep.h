// The column sweep of second-order rounding as its kernels see it.
//
// Rows of the weight are independent of each other: 32 of them form a tile, one to a lane of two vectors. What belongs
// to a tile lies together, column after column in the order of the sweep.
#pragma once

#include <cstdint>

namespace bw {

constexpr int64_t kSweepRows = 32;    // rows of a tile
constexpr int64_t kSweepPanel = 8;    // columns that are advanced together
constexpr int64_t kSweepPiece = 128;  // most columns of one call that rounds
constexpr int64_t kSweepRun = 512;    // finished columns that are taken in at once

struct Sweep {
  int64_t out = 0;
  int64_t in = 0;
  // A column feeds back its rounding error, and with `carry` its current value.
  const float* upper = nullptr;    // [in][in]: how column j feeds back to column k
  const float* carry = nullptr;    // [in][in], or null
  const int64_t* order = nullptr;  // [in]: the column of the weight that stands at a place of the sweep
  float* target = nullptr;         // [tiles][in][32]: weights; rounded values where the sweep has been
  float* history = nullptr;        // [tiles][in][feeds][32]: what finished columns feed back

  int64_t tiles() const { return (out + kSweepRows - 1) / kSweepRows; }
  int64_t feeds() const { return carry ? 2 : 1; }
};

// Columns first .. first + count of the sweep with their current values, [tiles][count][32].
struct Columns {
  int64_t first = 0;
  int64_t count = 0;
  float* values = nullptr;
};

// How a column is rounded.
struct Rounding {
  enum Kind : int { affine = 0, levels = 1, row_table = 2 };
  Kind kind = affine;
  int64_t parameters = 0;              // sets of parameters
  const int32_t* parameter = nullptr;  // [in]: the set of the column at each place of the sweep
  const float* scale = nullptr;        // [parameters][tiles * 32], not for row tables
  const float* zero = nullptr;         // the same, or null
  float low = 0, high = 0;             // affine: the ends
  int count = 0;                       // levels, the others
  const float* table = nullptr;        // [count] ascending, or [parameters][count][tiles * 32]
  const float* borders = nullptr;      // [count - 1], or [parameters][count - 1][tiles * 32]: x > border goes higher
  const uint8_t* codes = nullptr;      // [2][count]: codes of the levels, for x without and with a sign
};

}  // namespace bw
