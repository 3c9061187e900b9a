// 4-bit weights under two levels of scales (QServe): a block's scale and zero point are whole numbers, so that
// s (code - z) is an 8-bit weight; a row has one float scale. Nothing but integers until a row's end.
//
// The 8-bit weights are not made: the sum of s (code - z) x is s times (the sum of code * x less z times the sum of x),
// one multiplication for a block instead of one for every weight.
#include "core/pool.h"
#include "core/table.h"
#include "kernels/planes.h"
#include "kernels/tile.h"
#include "kernels/variants.h"
#include "simd/bytes.h"

namespace bw::BW_ISA {
namespace {

constexpr int kInputs = 8;  // of a vector: two fields of four

// The sums of code * x over a block of one tile.
template <int rows>
inline void block_sums(const uint8_t* w, const int8_t* x, int block, I32x16 (&sums)[rows]) {
  const U8x64 lower = splat_byte(0x0f), upper = splat_byte(0xf0);
  I32x16 low[rows], high[rows];
  for (int r = 0; r < rows; ++r) low[r] = high[r] = zero_i32();
  for (int v = 0; v < block / kInputs; ++v) {
    const U8x64 packed = held(load_bytes(w + v * kVector));
    const U8x64 first = bits_and(packed, lower);
    const U8x64 second = kFieldsInPlace ? bits_and(packed, upper) : shift_right<4>(packed, lower);
    unroll<rows>([&](auto r) {
      const int8_t* at = x + r * block + v * kInputs;
      low[r] = dot<15>(low[r], first, at);
      high[r] = dot<kFieldsInPlace ? 240 : 15>(high[r], second, at + 4);
    });
  }
  unroll<rows>([&](auto r) { sums[r] = add(low[r], kFieldsInPlace ? shift_right<4>(high[r]) : high[r]); });
}

template <int rows>
void run_rows(const Weight& weight, const TwoLevel& levels, const QuantizedRows& x, const Output& y, int64_t tile,
              int64_t row) {
  const uint8_t* w = weight.codes + tile * weight.tile_bytes();
  I32x16 totals[rows];
  for (I32x16& total : totals) total = zero_i32();
  for (int64_t b = 0; b < weight.blocks; ++b) {
    const int64_t place = b * x.rows + row, at = (tile * weight.blocks + b) * kRows;
    const I32x16 scale = load_u8_as_i32(levels.scales + at), zero = load_u8_as_i32(levels.zeros + at);
    I32x16 sums[rows];
    block_sums<rows>(w + b * weight.block_bytes(), x.codes + place * x.block, x.block, sums);
    unroll<rows>([&](auto r) {
      const I32x16 centred = sub(sums[r], mul(zero, splat_i32(x.sums[place + r])));
      totals[r] = add(totals[r], mul(scale, centred));
    });
  }
  const F32x16 scale = TileScales(weight, tile).scale(0);
  unroll<rows>([&](auto r) {
    write(y, weight.out, row + r, tile, mul(to_f32(totals[r]), mul(scale, splat(x.scale[row + r]))));
  });
}

}  // namespace

void linear_two_level(const Weight& weight, const TwoLevel& levels, const QuantizedRows& x, const Output& y,
                      int threads) {
  parallel_for(threads, weight.tiles(), [&](int64_t tile, int) {
    int64_t row = 0;
    if constexpr (!kLean)
      for (; row + 4 <= x.rows; row += 4) run_rows<4>(weight, levels, x, y, tile, row);
    for (; row < x.rows; ++row) run_rows<1>(weight, levels, x, y, tile, row);
  });
}

}  // namespace bw::BW_ISA
