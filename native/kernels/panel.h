// A block of a tile as bytes [quads][64] times rows of 8-bit activations.
#pragma once

#include "core/scratch.h"
#include "kernels/planes.h"
#include "kernels/tile.h"
#include "simd/bytes.h"

namespace bw::BW_ISA {

struct Block {
  const uint8_t* low;
  const uint8_t* high;  // weighs 128 times; null where there is none
  int quads;
};

template <int rows, bool two, int most>
inline void block_dots(const Block& block, const int8_t* x, int64_t stride, I32x16 (&total)[rows]) {
  // Few rows need further chains of sums, which do not wait for each other.
  constexpr int sets = rows == 1 ? 4 : rows == 2 ? 2 : 1;
  I32x16 low[rows][sets], high[two ? rows : 1][sets];
  for (auto& row : low)
    for (I32x16& sum : row) sum = zero_i32();
  for (auto& row : high)
    for (I32x16& sum : row) sum = zero_i32();
  const auto step = [&](int q, auto s) {
    const U8x64 w = held(load_bytes(block.low + q * kVector));
    unroll<rows>([&](auto r) { low[r][s] = dot<most>(low[r][s], w, x + r * stride + 4 * q); });
    if constexpr (two) {
      const U8x64 upper = held(load_bytes(block.high + q * kVector));
      unroll<rows>([&](auto r) { high[r][s] = dot<most>(high[r][s], upper, x + r * stride + 4 * q); });
    }
  };
  int q = 0;
  for (; q + sets <= block.quads; q += sets) unroll<sets>([&](auto s) { step(q + s, s); });
  for (; q < block.quads; ++q) step(q, std::integral_constant<int, 0>{});
  unroll<rows>([&](auto r) {
    total[r] = low[r][0];
    unroll<sets - 1>([&](auto s) { total[r] = add(total[r], low[r][s + 1]); });
    if constexpr (two) {
      I32x16 upper = high[r][0];
      unroll<sets - 1>([&](auto s) { upper = add(upper, high[r][s + 1]); });
      total[r] = add(total[r], shift_left<7>(upper));
    }
  });
}

template <int rows, bool two, int most, class Finish>
inline void some_rows(const Block& block, const int8_t* x, int64_t stride, int64_t first, Finish& finish) {
  I32x16 total[rows];
  block_dots<rows, two, most>(block, x + first * stride, stride, total);
  unroll<rows>([&](auto r) { finish(first + r, total[r]); });
}

// Calls finish(row, sum over the block's inputs of byte * code) for rows 0 .. count - 1 of x[row][stride].
template <bool two, int most, class Finish>
inline void panel(const Block& block, const int8_t* x, int64_t stride, int64_t count, Finish&& finish) {
  int64_t r = 0;
  for (; r + 8 <= count; r += 8) some_rows<8, two, most>(block, x, stride, r, finish);
  if (count - r >= 4) some_rows<4, two, most>(block, x, stride, r, finish), r += 4;
  if (count - r >= 2) some_rows<2, two, most>(block, x, stride, r, finish), r += 2;
  if (count - r >= 1) some_rows<1, two, most>(block, x, stride, r, finish);
}

}  // namespace bw::BW_ISA
