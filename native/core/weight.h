// A packed weight matrix as the kernels read it.
//
// Rows come in tiles of 16, inputs in blocks. The codes of one tile and one block lie together, tile after tile, block
// after block within a tile. A code of b bits is cut into fields of 4, 2 and 1 bits (8 bits: one field of 8), the
// lowest bits first; fields of one width form a plane. A plane is a run of 64-byte vectors: 32-bit lane r belongs to
// row r of the tile, byte j of the lane to input 4 q + j, and the fields of a byte, lowest first, to q = F v, F v + 1,
// ... for vector v and F fields in a byte. Missing rows and inputs are zero.
#pragma once

#include <cstdint>

namespace bw {

constexpr int kRows = 16;    // rows of a tile
constexpr int kVector = 64;  // bytes of a vector

enum class Float : int { f32 = 0, f16 = 1, bf16 = 2 };

// What a code means.
enum class Levels : int {
  affine = 0,     // scale * (code - zero)
  table = 1,      // scale * table[code]
  row_table = 2,  // scale * table[group][row][code]: a codebook of every row, or of every row and group
};

struct Weight {
  int64_t out = 0;
  int64_t in = 0;
  int bits = 0;
  int block = 0;       // inputs of a block; a multiple of 32
  int64_t blocks = 0;  // blocks of a row; the last may be padded
  int64_t blocks_per_scale = 1;
  int64_t groups = 1;  // scales of a row
  Levels levels = Levels::affine;
  Float scale_type = Float::f32;
  const uint8_t* codes = nullptr;       // [tiles][blocks][16 * block * bits / 8]
  const void* scale = nullptr;          // [tiles][groups][16]
  const uint8_t* zero_codes = nullptr;  // [tiles][groups][16], or null
  const float* zeros = nullptr;         // [tiles][groups][16], or null
  int32_t zero = 0;                     // where both are null
  const float* table = nullptr;         // [2^bits], or [tiles][groups][16][2^bits]

  int64_t tiles() const { return (out + kRows - 1) / kRows; }
  int64_t block_bytes() const { return int64_t{kRows} * block * bits / 8; }
  int64_t tile_bytes() const { return blocks * block_bytes(); }
  int64_t padded_in() const { return blocks * block; }
};

// Rows of activations as the kernels read them: cut into blocks, padded with zeros.
struct QuantizedRows {
  int64_t rows = 0;
  int block = 0;
  int64_t blocks = 0;
  const int8_t* codes = nullptr;  // [blocks][rows][block]
  const float* scale = nullptr;   // [blocks][rows]
  const int32_t* sums = nullptr;  // [blocks][rows]: sums of the codes
};

struct FloatRows {
  int64_t rows = 0;
  int block = 0;
  int64_t blocks = 0;
  const float* values = nullptr;  // [blocks][rows][block]
  const float* sums = nullptr;    // [blocks][rows]
};

// Where a product goes: y[rows][out] of some float type, with an optional bias[out].
struct Output {
  void* y = nullptr;
  Float type = Float::f32;
  const float* bias = nullptr;
};

}  // namespace bw
