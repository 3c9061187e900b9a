// Products out of a table (DeepGEMM): a 2-bit weight and a 2-bit activation together are an index of four bits, and a
// byte shuffle finds their product, whatever levels the two sides have.
//
// Two of the four codes of a byte are used where they stand: in bits 0 and 1 with the activation above, in bits 2 and 3
// with the activation below and the table turned; one shift brings the other two there. Entries are lifted to start at
// 0, so bytes are added until they might overflow; where a byte cannot hold an entry there are two tables.
#include "core/pool.h"
#include "core/scratch.h"
#include "core/table.h"
#include "kernels/planes.h"
#include "kernels/tile.h"
#include "kernels/variants.h"
#include "simd/bytes.h"

namespace bw::BW_ISA {
namespace {

constexpr int kCodes = 16;  // inputs of a vector: four fields of four

struct Lifted {
  alignas(16) uint8_t low[16], turned_low[16], high[16], turned_high[16];
  int32_t lowest = 0;   // of the entries
  int deepest = 1;      // vectors whose bytes may be added, 0 where a byte holds less than four products
  bool wide = false;    // a byte is too small for an entry
  int32_t padding = 0;  // the product of codes that fill a block
};

Lifted lift(const ProductTable& table) {
  Lifted lifted;
  int32_t most = table.entries[0];
  lifted.lowest = table.entries[0];
  for (int e = 1; e < 16; ++e) {
    if (table.entries[e] < lifted.lowest) lifted.lowest = table.entries[e];
    if (table.entries[e] > most) most = table.entries[e];
  }
  for (int e = 0; e < 16; ++e) {
    const int32_t entry = table.entries[e] - lifted.lowest;
    const int turned = e >> 2 | (e & 3) << 2;
    lifted.low[e] = lifted.turned_low[turned] = static_cast<uint8_t>(entry);
    lifted.high[e] = lifted.turned_high[turned] = static_cast<uint8_t>(entry >> 8);
  }
  most -= lifted.lowest;
  lifted.wide = most > 255;
  lifted.deepest = most == 0 ? 1 << 20 : 255 / (4 * most);
  lifted.padding = table.entries[(-table.lowest & 3) << 2];
  return lifted;
}

// Codes of the activations as they meet the fields of a byte: [rows][in], of four quads the first and the third raised.
void place_codes(const QuantizedRows& x, int32_t lowest, uint8_t* places, int threads) {
  parallel_for(x.rows > 1 ? threads : 1, x.rows, [&](int64_t row, int) {
    for (int64_t b = 0; b < x.blocks; ++b) {
      const int8_t* codes = x.codes + (b * x.rows + row) * x.block;
      uint8_t* to = places + (row * x.blocks + b) * x.block;
      for (int k = 0; k < x.block; ++k) to[k] = static_cast<uint8_t>(((codes[k] - lowest) & 3) << (k & 4 ? 0 : 2));
    }
  });
}

inline uint32_t word(const uint8_t* bytes) {
  uint32_t value;
  std::memcpy(&value, bytes, 4);
  return value;
}

// Lifted entries of the four fields of a vector, to take(row, entries of 64 places).
template <int rows, class Take>
inline void look_up(U8x64 packed, const uint8_t* x, int64_t stride, U8x64 table, U8x64 turned, Take&& take) {
  const U8x64 first = splat_byte(0x03), second = splat_byte(0x0c);
  const U8x64 fields[4] = {bits_and(packed, first), bits_and(packed, second), shift_right<4>(packed, first),
                           shift_right<4>(packed, second)};
  unroll<4>([&](auto f) {
    unroll<rows>([&](auto r) {
      const U8x64 index = bits_or(fields[f], splat_word(word(x + r * stride + 4 * f)));
      take(r, lookup_bytes(f & 1 ? turned : table, index));
    });
  });
}

// The lifted products of a block.
template <int rows>
inline void block_sums(const Lifted& lifted, const uint8_t* w, const uint8_t* x, int64_t stride, int vectors,
                       I32x16 (&sums)[rows]) {
  const U8x64 low = repeat16(lifted.low), turned = repeat16(lifted.turned_low);
  for (I32x16& sum : sums) sum = zero_i32();
  if (lifted.deepest && !lifted.wide) {
    for (int v = 0; v < vectors;) {
      const int stop = vectors - v < lifted.deepest ? vectors : v + lifted.deepest;
      U8x64 bytes[rows];
      for (U8x64& some : bytes) some = splat_byte(0);
      for (; v < stop; ++v)
        look_up<rows>(load_bytes(w + v * kVector), x + v * kCodes, stride, low, turned,
                      [&](auto r, U8x64 entries) { bytes[r] = add_bytes(bytes[r], entries); });
      unroll<rows>([&](auto r) { sums[r] = add_lane_bytes(sums[r], bytes[r]); });
    }
    return;
  }
  for (int v = 0; v < vectors; ++v)
    look_up<rows>(load_bytes(w + v * kVector), x + v * kCodes, stride, low, turned,
                  [&](auto r, U8x64 entries) { sums[r] = add_lane_bytes(sums[r], entries); });
  if (!lifted.wide) return;
  const U8x64 high = repeat16(lifted.high), turned_high = repeat16(lifted.turned_high);
  I32x16 upper[rows];
  for (I32x16& sum : upper) sum = zero_i32();
  for (int v = 0; v < vectors; ++v)
    look_up<rows>(load_bytes(w + v * kVector), x + v * kCodes, stride, high, turned_high,
                  [&](auto r, U8x64 entries) { upper[r] = add_lane_bytes(upper[r], entries); });
  unroll<rows>([&](auto r) { sums[r] = add(sums[r], shift_left<8>(upper[r])); });
}

template <int rows>
void run_rows(const Weight& weight, const Lifted& lifted, const QuantizedRows& x, const uint8_t* places,
              const Output& y, int64_t tile, int64_t row) {
  const TileScales scales(weight, tile);
  const int64_t stride = x.blocks * x.block;
  const uint8_t* w = weight.codes + tile * weight.tile_bytes();
  F32x16 results[rows];
  for (F32x16& result : results) result = zero_f32();
  for (int64_t b = 0; b < weight.blocks; ++b) {
    I32x16 sums[rows];
    block_sums<rows>(lifted, w + b * weight.block_bytes(), places + row * stride + b * x.block, stride,
                     weight.block / kCodes, sums);
    const int64_t missing = b + 1 == weight.blocks ? stride - weight.in : 0;
    const auto base = static_cast<int32_t>(lifted.lowest * weight.block - lifted.padding * missing);
    const int64_t group = b / weight.blocks_per_scale;
    unroll<rows>([&](auto r) {
      const int64_t place = b * x.rows + row + r;
      const F32x16 whole = to_f32(add(sums[r], splat_i32(base)));
      const F32x16 value = fma(scales.minus_zero(group), splat(static_cast<float>(x.sums[place])), whole);
      results[r] = fma(mul(scales.scale(group), splat(x.scale[place])), value, results[r]);
    });
  }
  unroll<rows>([&](auto r) { write(y, weight.out, row + r, tile, results[r]); });
}

}  // namespace

void linear_products(const Weight& weight, const ProductTable& table, const QuantizedRows& x, const Output& y,
                     int threads) {
  thread_local Scratch<uint8_t> scratch;
  uint8_t* places = scratch.get(static_cast<size_t>(x.rows * x.blocks * x.block));
  place_codes(x, table.lowest, places, threads);
  const Lifted lifted = lift(table);
  parallel_for(threads, weight.tiles(), [&](int64_t tile, int) {
    int64_t row = 0;
    if constexpr (!kLean)
      for (; row + 4 <= x.rows; row += 4) run_rows<4>(weight, lifted, x, places, y, tile, row);
    for (; row < x.rows; ++row) run_rows<1>(weight, lifted, x, places, y, tile, row);
  });
}

}  // namespace bw::BW_ISA
