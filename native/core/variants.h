// What the kernels beside the plain integer and float products read.
#pragma once

#include "core/weight.h"

namespace bw {

// Levels of at most 16 codes as integers in two halves of 7 bits: level = step * (128 * high + low - offset).
// One table for all rows: [16] each. A table for every row: [tiles][groups][4][64], where run L of vector i belongs to
// row 4 L + i of the tile; the codes are then packed with rows and inputs exchanged (Python: by_rows).
struct ByteTables {
  const uint8_t* low = nullptr;
  const uint8_t* high = nullptr;  // null where 7 bits hold every level
  bool by_row = false;
  int32_t offset = 0;
  float step = 1;
  int64_t tiles = 0, groups = 0;  // of the weight that tables of its rows were made for

  bool serve(const Weight& weight) const {
    return weight.bits >= 2 && weight.bits <= 4 && (!by_row || (tiles == weight.tiles() && groups == weight.groups));
  }
};

// Levels of 2^bits codes as bf16.
struct HalfTable {
  const uint16_t* levels = nullptr;
};

// Rows of activations as bf16; of each 8 inputs the order is 0 2 1 3 4 6 5 7.
struct HalfRows {
  int64_t rows = 0;
  int block = 0;
  int64_t blocks = 0;
  const uint16_t* values = nullptr;  // [blocks][rows][block]
  const float* sums = nullptr;       // [blocks][rows]
};

// How a recipe codes activations in integers: code = clamp(round(x / scale + zero), low, high).
struct Coding {
  bool given = false;  // scale and zero are given; else from the range of every run of inputs
  bool asymmetric = false;
  int64_t run = 0;  // inputs that share a scale: a multiple of the block, or the whole row
  float low = 0, high = 0;
  float steps = 1;  // a range over this is the scale
  float clip = 1;   // share of the range that counts
  float scale = 1, zero = 0;
};

// Activations bit by bit (kernels/linear_bits.cpp), and the sums of the weight's codes.
struct BitRows {
  const uint32_t* words = nullptr;  // [rows][bits][vectors]
  const int32_t* counts = nullptr;  // [tiles][groups][16]
  int bits = 0;
  int32_t lowest = 0;  // the smallest code of an activation
};

// Beside the coded term: values of single weights, a product of two narrow matrices, and a product with factors that
// the caller gives per row (zero points of activations).
struct Terms {
  int64_t out = 0, in = 0;          // of the matrix that they were made for
  const int32_t* starts = nullptr;  // [out + 1], or null
  const int32_t* columns = nullptr;
  const float* values = nullptr;
  int64_t rank = 0;
  const float* left = nullptr;   // [tiles][rank][16]
  const float* right = nullptr;  // [rank][in]
  int64_t shifts = 0;
  const float* sums = nullptr;   // [tiles][shifts][16]
  const float* shift = nullptr;  // [rows][shifts]
};

// A ternary matrix of one scale for every row: five digits of base 3 in a byte, the first the most significant, as
// ceil(value * 256 / 243). Vector v: lane r is row r, byte j holds inputs 20 v + 4 i + j for digits i = 0 .. 4.
struct TernaryWeight {
  int64_t out = 0;
  int64_t in = 0;
  const uint8_t* codes = nullptr;  // [tiles][vectors][64]
  const void* scale = nullptr;     // [tiles][16]
  Float scale_type = Float::f32;

  static constexpr int kInputs = 20;  // inputs of a vector
  static constexpr int kBlock = 160;  // inputs of a block of activations
  int64_t tiles() const { return (out + kRows - 1) / kRows; }
  int64_t vectors() const { return (in + kInputs - 1) / kInputs; }
  int64_t blocks() const { return (in + kBlock - 1) / kBlock; }
};

}  // namespace bw
