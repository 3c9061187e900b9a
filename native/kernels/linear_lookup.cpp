// Products of weights of at most 16 levels with 8-bit activations, in integers: levels come out of byte tables in a
// register, as 7 bits where that is exact (FP4 and other multiples of a step), else as twice 7 bits.
#include <cstring>

#include "core/pool.h"
#include "core/shares.h"
#include "core/table.h"
#include "kernels/ahead.h"
#include "kernels/panel.h"
#include "kernels/variants.h"

namespace bw::BW_ISA {
namespace {

constexpr int kDeepest = 256;

// Both halves of the tables that serve a tile's group: one vector, or one for each four rows.
template <bool two, bool by_row>
struct Registers {
  static constexpr int count = by_row ? 4 : 1;
  U8x64 low[count], high[two ? count : 1];

  Registers(const ByteTables& tables, int64_t place) {
    if constexpr (by_row) {
      unroll<4>([&](auto i) {
        low[i] = load_bytes(tables.low + (place * 4 + i) * kVector);
        if constexpr (two) high[i] = load_bytes(tables.high + (place * 4 + i) * kVector);
      });
    } else {
      low[0] = repeat16(tables.low);
      if constexpr (two) high[0] = repeat16(tables.high);
    }
  }
};

// Levels of one block as bytes [quads][64], rows in lanes.
template <int bits, bool two, bool by_row>
void level_block(const uint8_t* w, int block, const Registers<two, by_row>& tables, uint8_t* low, uint8_t* high) {
  unpack_block<bits>(w, block, low);
  for (int q = 0; q < block / 4; q += 4) {
    U8x64 lows[4], highs[4];
    unroll<4>([&](auto i) {
      constexpr int t = by_row ? int{i} : 0;
      const U8x64 codes = load_bytes(low + (q + i) * kVector);
      lows[i] = lookup_bytes(tables.low[t], codes);
      if constexpr (two) highs[i] = lookup_bytes(tables.high[t], codes);
    });
    if constexpr (by_row) transpose_fours(lows[0], lows[1], lows[2], lows[3]);
    if constexpr (by_row && two) transpose_fours(highs[0], highs[1], highs[2], highs[3]);
    unroll<4>([&](auto i) {
      store_bytes(low + (q + i) * kVector, lows[i]);
      if constexpr (two) store_bytes(high + (q + i) * kVector, highs[i]);
    });
  }
}

template <int bits, bool two, bool by_row>
void many_rows(const Weight& weight, const ByteTables& tables, const QuantizedRows& x, const Output& y, int64_t tile) {
  alignas(64) uint8_t low[kRows * kDeepest], high[two ? kRows * kDeepest : 1];
  thread_local Scratch<float> scratch;
  float* sums = scratch.get(static_cast<size_t>(x.rows) * kRows);
  std::memset(sums, 0, sizeof(float) * static_cast<size_t>(x.rows) * kRows);
  const TileScales scales(weight, tile);
  for (int64_t b = 0; b < weight.blocks; ++b) {
    const int64_t group = b / weight.blocks_per_scale, place = b * x.rows;
    const Registers<two, by_row> registers(tables, tile * weight.groups + group);
    level_block<bits>(weight.codes + tile * weight.tile_bytes() + b * weight.block_bytes(), weight.block, registers,
                      low, high);
    const F32x16 scale = mul(scales.scale(group), splat(tables.step));
    panel<two, 127>({low, high, weight.block / 4}, x.codes + place * weight.block, weight.block, x.rows,
                    [&](int64_t row, I32x16 total) {
                      const int32_t shift = tables.offset * x.sums[place + row];
                      const F32x16 value = to_f32(sub(total, splat_i32(shift)));
                      float* sum = sums + row * kRows;
                      store(sum, fma(mul(scale, splat(x.scale[place + row])), value, load(sum)));
                    });
  }
  for (int64_t row = 0; row < x.rows; ++row) write(y, weight.out, row, tile, load(sums + row * kRows));
}

// One row, 4 bits: codes go from the packed vector through the tables into the dot product.
template <bool two, bool by_row, bool far>
void one_row(const Weight& weight, const ByteTables& tables, const QuantizedRows& x, const Output& y, int64_t tile) {
  const TileScales scales(weight, tile);
  const U8x64 mask = splat_byte(15);
  const uint8_t* w = weight.codes + tile * weight.tile_bytes();
  F32x16 sum = zero_f32();
  for (int64_t b = 0; b < weight.blocks; ++b) {
    const int64_t group = b / weight.blocks_per_scale;
    const Registers<two, by_row> registers(tables, tile * weight.groups + group);
    const int8_t* codes = x.codes + b * weight.block;
    I32x16 low[4], high[4];
    for (I32x16& one : low) one = zero_i32();
    for (I32x16& one : high) one = zero_i32();
    for (int q = 0; q < weight.block / 4; q += 4, w += 2 * kVector) {
      const U8x64 first = load_bytes(w), second = load_bytes(w + kVector);
      ahead<far>(w);
      ahead<far>(w + kVector);
      const U8x64 fields[4] = {bits_and(first, mask), shift_right<4>(first, mask), bits_and(second, mask),
                               shift_right<4>(second, mask)};
      unroll<4>([&](auto i) {
        constexpr int t = by_row ? int{i} : 0;
        const U8x64 lows = lookup_bytes(registers.low[t], fields[i]);
        if constexpr (by_row) {
          const U8x64 run = repeat16(codes + 4 * q);
          low[i] = dot_vectors(low[i], lows, run);
          if constexpr (two) high[i] = dot_vectors(high[i], lookup_bytes(registers.high[t], fields[i]), run);
        } else {
          low[i] = dot<127>(low[i], lows, codes + 4 * (q + i));
          if constexpr (two)
            high[i] = dot<127>(high[i], lookup_bytes(registers.high[t], fields[i]), codes + 4 * (q + i));
        }
      });
    }
    if constexpr (two) unroll<4>([&](auto i) { low[i] = add(low[i], shift_left<7>(high[i])); });
    const I32x16 total =
        by_row ? sum_fours(low[0], low[1], low[2], low[3]) : add(add(low[0], low[1]), add(low[2], low[3]));
    const F32x16 value = to_f32(sub(total, splat_i32(tables.offset * x.sums[b])));
    sum = fma(mul(mul(scales.scale(group), splat(tables.step)), splat(x.scale[b])), value, sum);
  }
  write(y, weight.out, 0, tile, sum);
}

template <bool two, bool by_row>
void run(const Weight& weight, const ByteTables& tables, const QuantizedRows& x, const Output& y, int threads) {
  const int64_t tiles = weight.tiles();
  if (weight.bits == 4 && x.rows == 1) {
    const Shares shares(tiles, 4, threads);
    return with_ahead([&](auto far) {
      parallel_for(threads, shares.chunks(), [&](int64_t chunk, int) {
        for (int64_t tile = shares.first(chunk); tile < shares.last(chunk); ++tile)
          one_row<two, by_row, far>(weight, tables, x, y, tile);
      });
    });
  }
  parallel_for(threads, tiles, [&](int64_t tile, int) {
    switch (weight.bits) {
      case 2: return many_rows<2, two, by_row>(weight, tables, x, y, tile);
      case 3: return many_rows<3, two, by_row>(weight, tables, x, y, tile);
      default: many_rows<4, two, by_row>(weight, tables, x, y, tile);
    }
  });
}

}  // namespace

void linear_lookup(const Weight& weight, const ByteTables& tables, const QuantizedRows& x, const Output& y,
                   int threads) {
  if (tables.by_row) return run<true, true>(weight, tables, x, y, threads);
  tables.high ? run<true, false>(weight, tables, x, y, threads) : run<false, false>(weight, tables, x, y, threads);
}

}  // namespace bw::BW_ISA
