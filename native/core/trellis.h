// Trellis-coded weights as their kernels see them.
//
// Columns of a row come in blocks of `span`. The code of a column has k bits; its state is made of the last L bits of
// codes up to and including its own, the newest lowest, and goes around in the block: before the first code comes the
// last one. What a state means is a function of its L bits (formats/trellis.py), so columns decode independently.
#pragma once

#include <cstdint>

#include "core/weight.h"

namespace bw {

constexpr int kTrellisRun = 32;        // columns whose codes fill k whole words
constexpr int kTrellisMostState = 16;  // most bits of a state
constexpr int kTrellisMostSpan = 256;  // most columns of a block of a product

struct TrellisSearch {
  int64_t rows = 0;
  int64_t columns = 0;  // whole blocks
  int64_t span = 0;
  int bits = 0;                       // k: 1 to 4
  int state_bits = 0;                 // L: at least 2 k and k + 4
  int64_t around = 0;                 // columns on each side of the seam that choose the bits across it
  const float* values = nullptr;      // [2^L]
  const float* x = nullptr;           // [rows][columns]
  const float* importance = nullptr;  // [columns], or null: all equal

  // Pairs of states before a code and after one share this many bits.
  int64_t kept() const { return int64_t{1} << (state_bits - bits); }
  // 16-bit words of the choices of one column.
  int64_t choice_words() const { return kept() / 16 * bits; }
};

// How a state becomes a number n; the weight is scale * (n + offset), where the scale holds the code's own factor.
enum class TrellisCode : int {
  one_mad = 0,     // 1MAD: the sum of the four bytes of a s + b, minus 510
  three_inst = 1,  // 3INST: the sum of two halves of a s + b, made fp16 numbers
};

struct TrellisWeight {
  int64_t out = 0;
  int64_t in = 0;  // whole blocks
  int span = 0;    // a multiple of 32, up to 256
  int bits = 0;
  int state_bits = 0;
  TrellisCode code = TrellisCode::one_mad;
  int64_t blocks_per_scale = 1;
  int64_t groups = 1;
  Float scale_type = Float::f32;
  float offset = 0;
  const void* scale = nullptr;  // [tiles][groups][16]
  // [tiles][blocks][span / 32][k][16]: a run's codes are one string of bits, the first code in the highest bits of the
  // first word; rows lie side by side.
  const uint32_t* codes = nullptr;

  int64_t tiles() const { return (out + kRows - 1) / kRows; }
  int64_t blocks() const { return in / span; }
  int64_t block_words() const { return int64_t{span} / kTrellisRun * bits * kRows; }
  int64_t words() const { return tiles() * blocks() * block_words(); }
};

}  // namespace bw
