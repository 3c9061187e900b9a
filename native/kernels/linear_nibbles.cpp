// 4-bit weights with 8-bit activations, one scale for a row on both sides (FastGEMM of OdysseyLLM).
//
// A code is in two's complement. In the upper half of a byte it is 16 times the weight, so a mask makes a signed byte
// of it, and for the lower half a shift does; there is no zero point. Everything is added up in 32 bits, and the 1/16
// is part of the only scale, at the end. Activations are lifted by 128, because the products here take one side without
// sign; the sum of a row's weights takes that back.
#include "core/pool.h"
#include "core/scratch.h"
#include "core/table.h"
#include "kernels/planes.h"
#include "kernels/tile.h"
#include "kernels/variants.h"
#include "simd/bytes.h"

namespace bw::BW_ISA {
namespace {

constexpr int kInputs = 8;  // of a vector: two fields of four

// Activations of a row beside each other, lifted by 128: [rows][in].
void lift_codes(const QuantizedRows& x, uint8_t* lifted, int threads) {
  parallel_for(x.rows > 1 ? threads : 1, x.rows, [&](int64_t row, int) {
    for (int64_t b = 0; b < x.blocks; ++b) {
      const int8_t* codes = x.codes + (b * x.rows + row) * x.block;
      uint8_t* to = lifted + (row * x.blocks + b) * x.block;
      for (int k = 0; k < x.block; ++k) to[k] = static_cast<uint8_t>(codes[k] + 128);
    }
  });
}

template <int rows>
void run_rows(const Weight& weight, const int32_t* sums, const QuantizedRows& x, const uint8_t* lifted, const Output& y,
              int64_t tile, int64_t row) {
  // Further chains of sums where one row alone would wait for its own.
  constexpr int sets = rows == 1 ? 2 : 1;
  const int64_t stride = x.blocks * x.block, vectors = stride / kInputs;
  const uint8_t* w = weight.codes + tile * weight.tile_bytes();
  const uint8_t* at = lifted + row * stride;
  const U8x64 upper = splat_byte(0xf0);
  I32x16 acc[sets][rows][2];
  for (auto& set : acc)
    for (auto& each : set) each[0] = each[1] = zero_i32();
  for (int64_t v = 0; v < vectors; v += sets) {
    unroll<sets>([&](auto s) {
      const U8x64 packed = held(load_bytes(w + (v + s) * kVector));
      const U8x64 first = bits_and(shift_left_bytes<4>(packed), upper), second = bits_and(packed, upper);
      unroll<rows>([&](auto r) {
        const uint8_t* codes = at + r * stride + (v + s) * kInputs;
        acc[s][r][0] = dot_signed(acc[s][r][0], first, codes);
        acc[s][r][1] = dot_signed(acc[s][r][1], second, codes + 4);
      });
    });
  }
  const F32x16 scale = TileScales(weight, tile).scale(0);
  const I32x16 lift = shift_left<11>(load_i32(sums + tile * kRows));
  unroll<rows>([&](auto r) {
    I32x16 total = add(acc[0][r][0], acc[0][r][1]);
    if constexpr (sets == 2) total = add(total, add(acc[1][r][0], acc[1][r][1]));
    const F32x16 whole = to_f32(sub(total, lift));
    write(y, weight.out, row + r, tile, mul(whole, mul(scale, splat(x.scale[row + r] * 0.0625f))));
  });
}

}  // namespace

void linear_nibbles(const Weight& weight, const int32_t* sums, const QuantizedRows& x, const Output& y, int threads) {
  thread_local Scratch<uint8_t> scratch;
  uint8_t* lifted = scratch.get(static_cast<size_t>(x.rows * x.blocks * x.block));
  lift_codes(x, lifted, threads);
  parallel_for(threads, weight.tiles(), [&](int64_t tile, int) {
    int64_t row = 0;
    if constexpr (!kLean)
      for (; row + 4 <= x.rows; row += 4) run_rows<4>(weight, sums, x, lifted, y, tile, row);
    for (; row < x.rows; ++row) run_rows<1>(weight, sums, x, lifted, y, tile, row);
  });
}

}  // namespace bw::BW_ISA
