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

// How a recipe codes activations in integers: code = clamp(round(x / scale + zero), low, high); bipolar: clamp(ceil(x /
// scale) - 1, low, high), which means code + 1/2.
struct Coding {
  bool given = false;  // scale and zero are given; else from the range of every run of inputs
  bool asymmetric = false;
  bool bipolar = false;
  int64_t run = 0;  // inputs that share a scale: a multiple of the block, or the whole row
  float low = 0, high = 0;
  float steps = 1;  // a range over this is the scale
  float clip = 1;   // share of the range that counts
  float scale = 1, zero = 0;
  int64_t wide = -1;  // from this input on codes have 8 bits, -128 .. 127; in whole blocks, or -1

  // Whether a code of 0 does not mean 0, so that products need the sums of the weight.
  bool shifts() const { return asymmetric || bipolar; }
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
  // A weight of chosen blocks, [out][count * block], and which they are; added before the others.
  Weight chosen;
  const int32_t* which = nullptr;  // [tiles][count][16], or null
  int64_t most = 0;                // the largest of them
};

// A ternary matrix of one scale for every row, in one of two forms.
//
// Five digits of base 3 in a byte, the first the most significant, as ceil(value * 256 / 243). Vector v: lane r is row
// r, byte j holds inputs 20 v + 4 i + j for digits i = 0 .. 4: [tiles][vectors][64].
//
// Three digits in five bits: 9 d0 + 3 d1 + d2 with digits of -1, 0, 1 as a sign and a size of 0 .. 13. A unit holds 24
// inputs of 64 rows: four vectors of sizes, byte b with triples 2 v (lower bits) and 2 v + 1, then a vector of signs,
// bit t of a byte for triple t. Byte 2 i belongs to row i, byte 2 i + 1 to row 32 + i: [out / 64][units][5][64].
struct TernaryWeight {
  int64_t out = 0;
  int64_t in = 0;
  const uint8_t* codes = nullptr;
  const void* scale = nullptr;  // [tiles][16]
  Float scale_type = Float::f32;
  bool triples = false;

  static constexpr int kInputs = 20;  // inputs of a vector of digits
  static constexpr int kBlock = 160;  // inputs of a block of activations
  static constexpr int kTall = 64;    // rows of a unit of triples
  static constexpr int kUnit = 24;    // inputs of it
  static constexpr int kUnitBytes = 320;
  static constexpr int kTripleBlock = 192;  // inputs of a block of activations for triples
  int64_t tiles() const { return (out + kRows - 1) / kRows; }
  int64_t talls() const { return (out + kTall - 1) / kTall; }
  int64_t vectors() const { return (in + kInputs - 1) / kInputs; }
  int64_t units() const { return (in + kUnit - 1) / kUnit; }
  int64_t blocks() const { return (in + block() - 1) / block(); }
  int block() const { return triples ? kTripleBlock : kBlock; }
};

// Products of the levels of 2-bit weights and activations: entry 4 a + w for codes a, w; the codes of activations start
// at `lowest`.
struct ProductTable {
  const int32_t* entries = nullptr;  // [16]
  int32_t lowest = 0;
};

// Scales and zero points of blocks as whole numbers below the weight's own scale of a row: scale * s * (code - z).
struct TwoLevel {
  const uint8_t* scales = nullptr;  // [tiles][blocks][16]
  const uint8_t* zeros = nullptr;   // likewise
};

}  // namespace bw
