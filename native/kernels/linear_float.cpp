// Products in fp32: activations as they are, codes looked up in a table or taken as integers. Serves every format whose
// code has at most 8 bits; the reference of the faster ways.
#include <cstring>

#include "core/pool.h"
#include "core/scratch.h"
#include "kernels/linear.h"
#include "kernels/planes.h"
#include "kernels/tile.h"

namespace bw::BW_ISA {
namespace {

// Codes as numbers.
struct AsInteger {
  F32x16 operator()(I32x16 code) const { return to_f32(code); }
};
// A table of at most 16 values, in a register.
struct FromRegister {
  F32x16 table;
  F32x16 operator()(I32x16 code) const { return lookup16(table, code); }
};
// A longer table, or one for every row: `start` is the first entry of each row.
struct FromMemory {
  const float* table;
  I32x16 start;
  F32x16 operator()(I32x16 code) const { return gather(table, add(code, start)); }
};

// sums[r] += the products of one unpacked block.
template <int rows, class Value>
inline void block_products(const uint8_t* bytes, const float* x, int block, const Value& value, F32x16 (&sums)[rows]) {
  for (int q = 0; q < block / 4; ++q) {
    const U8x64 four = load_bytes(bytes + q * kVector);
    unroll<4>([&](auto j) {
      const F32x16 w = value(byte_of_lane<j>(four));
      unroll<rows>([&](auto r) { sums[r] = fma(w, splat(x[r * block + 4 * q + j]), sums[r]); });
    });
  }
}

I32x16 row_starts(int levels) {
  alignas(64) uint8_t rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = static_cast<uint8_t>(r);
  return mul(load_u8_as_i32(rows), splat_i32(levels));
}

template <int rows>
void block_sums(const Weight& weight, const uint8_t* bytes, const float* x, int64_t tile, int64_t group,
                F32x16 (&sums)[rows]) {
  const int levels = 1 << weight.bits;
  if (weight.levels == Levels::affine) return block_products(bytes, x, weight.block, AsInteger{}, sums);
  if (weight.levels == Levels::row_table) {
    const float* table = weight.table + (tile * weight.groups + group) * kRows * levels;
    return block_products(bytes, x, weight.block, FromMemory{table, row_starts(levels)}, sums);
  }
  if (weight.bits <= 4) {
    alignas(64) float table[16] = {};
    std::memcpy(table, weight.table, sizeof(float) * static_cast<size_t>(levels));
    return block_products(bytes, x, weight.block, FromRegister{load(table)}, sums);
  }
  block_products(bytes, x, weight.block, FromMemory{weight.table, zero_i32()}, sums);
}

constexpr int kPanel = 8;

template <int rows>
void panel(const Weight& weight, const FloatRows& x, const uint8_t* bytes, int64_t tile, int64_t b, int64_t row,
           float* sums) {
  const int64_t place = b * x.rows + row, group = b / weight.blocks_per_scale;
  F32x16 here[rows];
  unroll<rows>([&](auto r) { here[r] = zero_f32(); });
  block_sums<rows>(weight, bytes, x.values + place * weight.block, tile, group, here);
  const TileScales scales(weight, tile);
  const F32x16 scale = scales.scale(group), minus_zero = scales.minus_zero(group);
  const bool affine = weight.levels == Levels::affine;
  unroll<rows>([&](auto r) {
    const F32x16 value = affine ? fma(minus_zero, splat(x.sums[place + r]), here[r]) : here[r];
    store(sums + r * kRows, fma(scale, value, load(sums + r * kRows)));
  });
}

template <int bits>
void run_tile(const Weight& weight, const FloatRows& x, const Output& y, int64_t tile) {
  alignas(64) uint8_t bytes[kRows * 256];
  thread_local Scratch<float> scratch;
  float* sums = scratch.get(static_cast<size_t>(x.rows) * kRows);
  std::memset(sums, 0, sizeof(float) * static_cast<size_t>(x.rows) * kRows);
  for (int64_t b = 0; b < weight.blocks; ++b) {
    unpack_block<bits>(weight.codes + tile * weight.tile_bytes() + b * weight.block_bytes(), weight.block, bytes);
    int64_t row = 0;
    if constexpr (!kLean) {
      for (; row + kPanel <= x.rows; row += kPanel) panel<kPanel>(weight, x, bytes, tile, b, row, sums + row * kRows);
      if (x.rows - row >= 4) panel<4>(weight, x, bytes, tile, b, row, sums + row * kRows), row += 4;
    }
    for (; row < x.rows; ++row) panel<1>(weight, x, bytes, tile, b, row, sums + row * kRows);
  }
  for (int64_t row = 0; row < x.rows; ++row) write(y, weight.out, row, tile, load(sums + row * kRows));
}

}  // namespace

void linear_float(const Weight& weight, const FloatRows& x, const Output& y, int threads) {
  if (x.rows == 0) return;  // there may be no memory for the sums of no rows
  with_bits(weight.bits, [&](auto bits) {
    parallel_for(threads, weight.tiles(), [&](int64_t tile, int) { run_tile<bits>(weight, x, y, tile); });
  });
}

}  // namespace bw::BW_ISA
