// 4-bit weights with activations of 4 bits in most blocks and 8 bits in the others (COMET): many rows add products of
// two 4-bit numbers up in fewer bits, where the instruction set gains by it. Elsewhere this is the integer product,
// which takes any codes; one row alone waits for memory and gains nothing either.
#include "core/pool.h"
#include "core/table.h"
#include "kernels/linear.h"
#include "kernels/planes.h"
#include "kernels/tile.h"
#include "kernels/variants.h"
#include "simd/bytes.h"

namespace bw::BW_ISA {
namespace {

constexpr int kInputs = 8;  // of a vector: two fields of four
constexpr int kRowsAtOnce = 4;

// The sums of code * x over a block of one tile; narrow: every x is from -8 to 7.
template <int rows, bool narrow>
inline void block_sums(const uint8_t* w, const int8_t* x, int block, I32x16 (&sums)[rows]) {
  const U8x64 lower = splat_byte(0x0f);
  NarrowSums small[narrow ? rows : 1][2];
  I32x16 whole[narrow ? 1 : rows][2];
  for (auto& each : small) each[0] = each[1] = narrow_zero();
  for (auto& each : whole) each[0] = each[1] = zero_i32();
  for (int v = 0; v < block / kInputs; ++v) {
    const U8x64 packed = held(load_bytes(w + v * kVector));
    const U8x64 first = bits_and(packed, lower), second = shift_right<4>(packed, lower);
    unroll<rows>([&](auto r) {
      const int8_t* at = x + r * block + v * kInputs;
      if constexpr (narrow) {
        small[r][0] = dot_narrow(small[r][0], first, at);
        small[r][1] = dot_narrow(small[r][1], second, at + 4);
      } else {
        whole[r][0] = dot<15>(whole[r][0], first, at);
        whole[r][1] = dot<15>(whole[r][1], second, at + 4);
      }
    });
  }
  unroll<rows>([&](auto r) {
    if constexpr (narrow)
      sums[r] = add(total(small[r][0]), total(small[r][1]));
    else
      sums[r] = add(whole[r][0], whole[r][1]);
  });
}

template <int rows>
void run_rows(const Weight& weight, int64_t wide, const QuantizedRows& x, const Output& y, int64_t tile, int64_t row) {
  const TileScales scales(weight, tile);
  const uint8_t* w = weight.codes + tile * weight.tile_bytes();
  F32x16 results[rows];
  for (F32x16& result : results) result = zero_f32();
  for (int64_t b = 0; b < weight.blocks; ++b, w += weight.block_bytes()) {
    const int64_t place = b * x.rows + row, group = b / weight.blocks_per_scale;
    I32x16 sums[rows];
    if (b < wide)
      block_sums<rows, true>(w, x.codes + place * x.block, x.block, sums);
    else
      block_sums<rows, false>(w, x.codes + place * x.block, x.block, sums);
    const F32x16 scale = scales.scale(group), minus_zero = scales.minus_zero(group);
    unroll<rows>([&](auto r) {
      const F32x16 value = fma(minus_zero, splat(static_cast<float>(x.sums[place + r])), to_f32(sums[r]));
      results[r] = fma(mul(scale, splat(x.scale[place + r])), value, results[r]);
    });
  }
  unroll<rows>([&](auto r) { write(y, weight.out, row + r, tile, results[r]); });
}

}  // namespace

void linear_mixed(const Weight& weight, int64_t wide, const QuantizedRows& x, const Output& y, int threads) {
  if (!kNarrowGains || x.rows < kRowsAtOnce) return linear_int8(weight, x, y, threads);
  parallel_for(threads, weight.tiles(), [&](int64_t tile, int) {
    int64_t row = 0;
    for (; row + kRowsAtOnce <= x.rows; row += kRowsAtOnce) run_rows<kRowsAtOnce>(weight, wide, x, y, tile, row);
    for (; row < x.rows; ++row) run_rows<1>(weight, wide, x, y, tile, row);
  });
}

}  // namespace bw::BW_ISA
