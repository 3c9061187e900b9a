// Integer products: codes of 1 to 8 bits with activations of 8 bits.
//
// Few rows (decoding): every byte of the weight is read once; a field of a byte is multiplied where it stands, in an
// accumulator of its own that is shifted once per block, so that 64 weight bytes cost one mask and one dot product per
// field. Many rows (prompts): a block of two tiles is unpacked once into the first cache and used by all rows, eight at
// a time in registers.
#include <algorithm>

#include "core/pool.h"
#include "core/scratch.h"
#include "core/shares.h"
#include "kernels/ahead.h"
#include "kernels/linear.h"
#include "kernels/planes.h"
#include "kernels/tile.h"

namespace bw::BW_ISA {
namespace {

// Bytes of weights that a chunk of work reads: enough to hide the claim, little enough to share out evenly.
constexpr int64_t kChunkBytes = 48 * 1024;
// The size of a block that has loops of its own.
constexpr int kCommonBlock = 128;

// Adds the products of one plane to total[row]. A weight vector is read once for all fields and rows. It is read as one
// stream from the first byte of a tile to the last of a chunk; a second stream beside it was measured to cost a third
// of a thread's bandwidth on Zen 4.
template <int width, int offset, int rows, int known, bool far>
inline const uint8_t* plane(const uint8_t* w, const int8_t* x, int block_, I32x16 (&total)[rows]) {
  const int block = known ? known : block_;
  constexpr int fields = 8 / width, mask = (1 << width) - 1;
  constexpr bool in_place = kFieldsInPlace && fields * rows <= 16;
  constexpr int chains = in_place ? fields : 1;
  // Several sets where few chains of dependent sums would be slower than memory.
  constexpr int sets = chains * rows == 1 ? 4 : chains * rows == 2 ? 2 : 1;
  I32x16 acc[sets][rows][chains];
  for (auto& set : acc)
    for (auto& row : set)
      for (auto& chain : row) chain = zero_i32();
  const int vectors = block / (4 * fields);
  const auto step = [&](int v, auto set_) {
    constexpr int set = set_;
    const U8x64 packed = held(load_bytes(w + v * kVector));
    ahead<far>(w + v * kVector);
    unroll<fields>([&](auto f_) {
      constexpr int f = f_, chain = in_place ? f : 0;
      constexpr int most = in_place ? mask << (f * width) : mask;
      U8x64 field = packed;
      if constexpr (!in_place) {
        field = shift_right<f * width>(packed, splat_byte(mask));
      } else if constexpr (width != 8) {
        field = bits_and(packed, splat_byte(mask << (f * width)));
      }
      const int8_t* at = x + (v * fields + f) * 4;
      unroll<rows>([&](auto r) { acc[set][r][chain] = dot<most>(acc[set][r][chain], field, at + r * block); });
    });
  };
  int v = 0;
  for (; v + sets <= vectors; v += sets) unroll<sets>([&](auto set) { step(v + set, set); });
  for (; v < vectors; ++v) step(v, std::integral_constant<int, 0>{});
  unroll<rows>([&](auto r) {
    unroll<chains>([&](auto c_) {
      constexpr int c = c_;
      I32x16 whole = acc[0][r][c];
      unroll<sets - 1>([&](auto set) { whole = add(whole, acc[set + 1][r][c]); });
      total[r] = add(total[r], shift_left<offset>(shift_right<c * width>(whole)));
    });
  });
  return w + static_cast<int64_t>(vectors) * kVector;
}

// The products of one tile with `rows` rows; `known` is the size of a block where it is the common one, else 0.
template <int bits, int rows, int known, bool far>
void decode_tile(const Weight& weight, const QuantizedRows& x, const Output& y, int64_t first_row, int64_t tile) {
  const TileScales scales(weight, tile);
  const uint8_t* w = weight.codes + tile * weight.tile_bytes();
  F32x16 sums[rows];
  unroll<rows>([&](auto r) { sums[r] = zero_f32(); });
  int64_t group = 0, left = weight.blocks_per_scale;
  for (int64_t b = 0; b < weight.blocks; ++b) {
    const int64_t place = b * x.rows + first_row;
    I32x16 total[rows];
    unroll<rows>([&](auto r) { total[r] = zero_i32(); });
    each_plane<bits>([&](auto width, auto offset) {
      w = plane<width, offset, rows, known, far>(w, x.codes + place * weight.block, weight.block, total);
    });
    const F32x16 scale = scales.scale(group), minus_zero = scales.minus_zero(group);
    if constexpr (far) scales.ahead(group);
    unroll<rows>([&](auto r) {
      const F32x16 value = fma(minus_zero, splat(static_cast<float>(x.sums[place + r])), to_f32(total[r]));
      sums[r] = fma(mul(scale, splat(x.scale[place + r])), value, sums[r]);
    });
    if (--left == 0) ++group, left = weight.blocks_per_scale;
  }
  unroll<rows>([&](auto r) { write(y, weight.out, first_row + r, tile, sums[r]); });
}

template <int bits, int known, bool far>
void decode_rows(const Weight& weight, const QuantizedRows& x, const Output& y, int64_t tile) {
  int64_t row = 0;
  if constexpr (!kLean) {
    for (; row + 4 <= x.rows; row += 4) decode_tile<bits, 4, known, far>(weight, x, y, row, tile);
    if (row + 2 <= x.rows) decode_tile<bits, 2, known, far>(weight, x, y, row, tile), row += 2;
  }
  // The tile that one row has read is in the first caches for the next.
  for (; row < x.rows; ++row) decode_tile<bits, 1, known, far>(weight, x, y, row, tile);
}

template <int bits, bool far>
void decode_chunk(const Weight& weight, const QuantizedRows& x, const Output& y, int64_t tile, int64_t stop) {
  constexpr int common = kLean ? 0 : kCommonBlock;
  for (; tile < stop; ++tile)
    weight.block == common ? decode_rows<bits, common, far>(weight, x, y, tile)
                           : decode_rows<bits, 0, far>(weight, x, y, tile);
}

constexpr int kTiles = 2;      // tiles that a prompt's kernel holds in registers
constexpr int kPanel = 8;      // rows that it holds
constexpr int kDeepest = 256;  // largest block

struct Panel {
  const uint8_t* bytes;  // [tiles][block / 4][64]
  float* sums;           // [rows][tiles][16]
  int64_t tile;
  int tiles;
};

// One block of `tiles` tiles with `rows` rows; bytes are up to `most`.
template <int rows, int tiles, int most>
inline void panel_block(const Weight& weight, const QuantizedRows& x, const Panel& panel, int64_t b, int64_t row,
                        float* sums) {
  const int64_t place = b * x.rows + row, group = b / weight.blocks_per_scale;
  const int8_t* codes = x.codes + place * weight.block;
  I32x16 acc[rows][tiles];
  unroll<rows>([&](auto r) { unroll<tiles>([&](auto t) { acc[r][t] = zero_i32(); }); });
  for (int q = 0; q < weight.block / 4; ++q) {
    U8x64 w[tiles];
    unroll<tiles>([&](auto t) { w[t] = held(load_bytes(panel.bytes + (t * (weight.block / 4) + q) * kVector)); });
    unroll<rows>([&](auto r) {
      // One load for all tiles: one for every product is all that the load ports do.
      const X4 four = splat_four(codes + r * weight.block + 4 * q);
      unroll<tiles>([&](auto t) { acc[r][t] = dot<most>(acc[r][t], w[t], four); });
    });
  }
  float row_scale[rows], row_sum[rows];
  for (int r = 0; r < rows; ++r) {
    row_scale[r] = x.scale[place + r];
    row_sum[r] = static_cast<float>(x.sums[place + r]);
  }
  unroll<tiles>([&](auto t) {
    const TileScales scales(weight, panel.tile + t);
    const F32x16 scale = scales.scale(group), minus_zero = scales.minus_zero(group);
    unroll<rows>([&](auto r) {
      const F32x16 value = fma(minus_zero, splat(row_sum[r]), to_f32(acc[r][t]));
      float* sum = sums + (r * tiles + t) * kRows;
      store(sum, fma(mul(scale, splat(row_scale[r])), value, load(sum)));
    });
  });
}

template <int tiles, int most>
void panel_rows(const Weight& weight, const QuantizedRows& x, const Panel& panel, int64_t b, int64_t first,
                int64_t count) {
  int64_t r = 0;
  float* sums = panel.sums;
  constexpr int64_t width = tiles * kRows;
  if constexpr (!kLean) {
    for (; r + 8 <= count; r += 8) panel_block<8, tiles, most>(weight, x, panel, b, first + r, sums + r * width);
    if (count - r >= 4) panel_block<4, tiles, most>(weight, x, panel, b, first + r, sums + r * width), r += 4;
  }
  for (; r < count; ++r) panel_block<1, tiles, most>(weight, x, panel, b, first + r, sums + r * width);
}

// Rows whose sums (two tiles of fp32) stay in the second cache beside the unpacked block.
constexpr int64_t kRowsOfPanel = 256;

template <int bits>
void prompt_tiles(const Weight& weight, const QuantizedRows& x, const Output& y, int64_t tile, int tiles) {
  alignas(64) uint8_t bytes[kTiles * kRows * kDeepest];
  thread_local Scratch<float> scratch;
  float* sums = scratch.get(kRowsOfPanel * kTiles * kRows);
  const Panel panel{bytes, sums, tile, tiles};
  for (int64_t first = 0; first < x.rows; first += kRowsOfPanel) {
    const int64_t count = std::min(kRowsOfPanel, x.rows - first);
    std::memset(sums, 0, sizeof(float) * count * tiles * kRows);
    for (int64_t b = 0; b < weight.blocks; ++b) {
      for (int t = 0; t < tiles; ++t) {
        const uint8_t* w = weight.codes + (tile + t) * weight.tile_bytes() + b * weight.block_bytes();
        unpack_block<bits>(w, weight.block, bytes + t * kRows * weight.block);
      }
      // Whole bytes cost AVX2 twice as much as smaller ones.
      constexpr int most = bits < 8 ? 127 : 255;
      tiles == 2 ? panel_rows<2, most>(weight, x, panel, b, first, count)
                 : panel_rows<1, most>(weight, x, panel, b, first, count);
    }
    for (int64_t r = 0; r < count; ++r)
      for (int t = 0; t < tiles; ++t) write(y, weight.out, first + r, tile + t, load(sums + (r * tiles + t) * kRows));
  }
}

template <int bits>
void run(const Weight& weight, const QuantizedRows& x, const Output& y, int threads) {
  const int64_t tiles = weight.tiles();
  if (x.rows < kPanel) {
    const Shares shares(tiles, std::min(kChunkBytes / weight.tile_bytes(), tiles / (int64_t{4} * threads)), threads);
    with_ahead([&](auto far) {
      parallel_for(threads, shares.chunks(), [&](int64_t chunk, int) {
        decode_chunk<bits, far>(weight, x, y, shares.first(chunk), shares.last(chunk));
      });
    });
    return;
  }
  parallel_for(threads, (tiles + kTiles - 1) / kTiles, [&](int64_t chunk, int) {
    const int64_t tile = chunk * kTiles;
    prompt_tiles<bits>(weight, x, y, tile, static_cast<int>(std::min<int64_t>(kTiles, tiles - tile)));
  });
}

}  // namespace

void linear_int8(const Weight& weight, const QuantizedRows& x, const Output& y, int threads) {
  with_bits(weight.bits, [&](auto bits) { run<bits>(weight, x, y, threads); });
}

}  // namespace bw::BW_ISA
