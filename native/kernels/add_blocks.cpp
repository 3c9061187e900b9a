// A few blocks of every row, each row its own: the part of a weight that groups with more bits have beyond the common
// plane. The inputs of a block differ from lane to lane, so words of activations are gathered.
#include "core/pool.h"
#include "core/scratch.h"
#include "core/table.h"
#include "kernels/planes.h"
#include "kernels/tile.h"
#include "kernels/variants.h"
#include "simd/bytes.h"

namespace bw::BW_ISA {
namespace {

constexpr int kCodes = 16;  // inputs of a vector of 2-bit codes: four fields of four

// The sum of code * x over one block of 2-bit codes; word q of lane r lies at x + offset[r] + 4 q.
inline I32x16 block_sum(const uint8_t* w, const int8_t* x, I32x16 offset, int block) {
  const U8x64 mask = splat_byte(3);
  I32x16 sum = zero_i32();
  for (int v = 0; v < block / kCodes; ++v, x += kCodes) {
    const U8x64 packed = load_bytes(w + v * kVector);
    unroll<4>(
        [&](auto f) { sum = dot_vectors(sum, shift_right<2 * f>(packed, mask), gather_words(x + 4 * f, offset)); });
  }
  return sum;
}

struct Rows {
  const QuantizedRows& x;
  const float* sums;  // [blocks][rows]
};

void run_tile(const Weight& weight, const int32_t* which, const Rows& rows, const float* main, const Output& y,
              int64_t tile) {
  const QuantizedRows& x = rows.x;
  const TileScales scales(weight, tile);
  const int64_t first = tile * kRows, count = weight.out - first < kRows ? weight.out - first : kRows;
  const uint8_t* w = weight.codes + tile * weight.tile_bytes();
  const I32x16 stride = splat_i32(static_cast<int32_t>(x.rows));
  for (int64_t row = 0; row < x.rows; ++row) {
    alignas(64) float values[kRows] = {};
    std::memcpy(values, main + row * weight.out + first, static_cast<size_t>(count) * sizeof(float));
    F32x16 result = load(values);
    for (int64_t b = 0; b < weight.blocks; ++b) {
      const I32x16 place = mul(load_i32(which + (tile * weight.blocks + b) * kRows), stride);
      const I32x16 some =
          block_sum(w + b * weight.block_bytes(), x.codes + row * x.block, mul(place, splat_i32(x.block)), x.block);
      const F32x16 value = fma(scales.minus_zero(b), gather(rows.sums + row, place), to_f32(some));
      result = fma(mul(scales.scale(b), gather(x.scale + row, place)), value, result);
    }
    write(y, weight.out, row, tile, result);
  }
}

}  // namespace

void add_blocks(const Weight& weight, const int32_t* which, const QuantizedRows& x, const float* main, const Output& y,
                int threads) {
  thread_local Scratch<float> scratch;
  const int64_t places = x.blocks * x.rows;
  float* sums = scratch.get(static_cast<size_t>(places));
  for (int64_t i = 0; i < places; ++i) sums[i] = static_cast<float>(x.sums[i]);
  const Rows rows{x, sums};
  parallel_for(threads, weight.tiles(), [&](int64_t tile, int) { run_tile(weight, which, rows, main, y, tile); });
}

}  // namespace bw::BW_ISA
