// Products without multiplying: for every few activations a table of all their sums, looked up by the weights' bits (or
// ternary digits), 64 rows at a time. Sums are kept whole, in two bytes; so the result is that of the integer product.
#include <cstring>

#include "core/pool.h"
#include "core/scratch.h"
#include "core/table.h"
#include "kernels/planes.h"
#include "kernels/tile.h"
#include "kernels/variants.h"
#include "simd/bytes.h"

namespace bw::BW_ISA {
namespace {

constexpr int kTall = 64;     // rows of a tile here
constexpr int kTable = 32;    // bytes of a table: 16 low, 16 high
constexpr int kOffset = 512;  // above the largest size of a sum, 4 * 127 + 4

// Tables of a block: entry e of a group of 4 is the sum of the activations whose bit is set in e; of a group of 2 with
// ternary digits, d0 x0 + d1 x1 for e = 3 d0 + d1.
template <int inputs>
void make_tables(const int8_t* x, int block, uint8_t* tables) {
  for (int g = 0; g < block / inputs; ++g, x += inputs, tables += kTable) {
    for (int e = 0; e < 16; ++e) {
      int sum = kOffset;
      if constexpr (inputs == 4)
        sum += (e & 1) * x[0] + (e >> 1 & 1) * x[1] + (e >> 2 & 1) * x[2] + (e >> 3 & 1) * x[3];
      else
        sum += e < 9 ? e / 3 * x[0] + e % 3 * x[1] : 0;
      tables[e] = static_cast<uint8_t>(sum);
      tables[16 + e] = static_cast<uint8_t>(sum >> 8);
    }
  }
}

// Adds 2^plane times the sums of one plane of a block to totals[64]; returns what follows the plane.
template <int inputs>
const uint8_t* add_plane(const uint8_t* w, const uint8_t* tables, int block, int plane, int32_t* totals) {
  const int groups = block / inputs;
  const U8x64 nibble = splat_byte(15), low_byte = splat_word(0x00ff00ffu);
  U8x64 even = splat_byte(0), odd = splat_byte(0), high = splat_byte(0);
  for (int g = 0; g < groups; g += 2, w += kTall, tables += 2 * kTable) {
    const U8x64 packed = load_bytes(w);
    prefetch(w + 4096);
    const U8x64 first = bits_and(packed, nibble), second = shift_right<4>(packed, nibble);
    const U8x64 a = lookup_bytes(repeat16(tables), first), b = lookup_bytes(repeat16(tables + kTable), second);
    even = add_pairs(even, add_pairs(bits_and(a, low_byte), bits_and(b, low_byte)));
    odd = add_pairs(odd, add_pairs(odd_bytes(a), odd_bytes(b)));
    // A high byte is below 4, and there are at most 64 groups of each kind of table.
    high = add_bytes(high, add_bytes(lookup_bytes(repeat16(tables + 16), first),
                                     lookup_bytes(repeat16(tables + kTable + 16), second)));
  }
  alignas(64) uint16_t evens[32], odds[32];
  alignas(64) uint8_t highs[64];
  store_bytes(reinterpret_cast<uint8_t*>(evens), even);
  store_bytes(reinterpret_cast<uint8_t*>(odds), odd);
  store_bytes(highs, high);
  for (int r = 0; r < 32; ++r) {
    totals[2 * r] += (evens[r] + 256 * highs[2 * r] - kOffset * groups) * (1 << plane);
    totals[2 * r + 1] += (odds[r] + 256 * highs[2 * r + 1] - kOffset * groups) * (1 << plane);
  }
  return w;
}

template <int inputs>
void run_tile(const Weight& weight, const QuantizedRows& x, const uint8_t* tables, const Output& y, int64_t tall) {
  const int planes = inputs == 4 ? weight.bits : 1;
  const int64_t block_bytes = int64_t{kTall} * weight.block * weight.bits / 8;
  const int64_t block_tables = int64_t{weight.block} / inputs * kTable;
  for (int64_t row = 0; row < x.rows; ++row) {
    F32x16 sums[4] = {zero_f32(), zero_f32(), zero_f32(), zero_f32()};
    for (int64_t b = 0; b < weight.blocks; ++b) {
      const uint8_t* w = weight.codes + (tall * weight.blocks + b) * block_bytes;
      alignas(64) int32_t totals[kTall] = {};
      alignas(64) float values[kTall];
      for (int plane = 0; plane < planes; ++plane)
        w = add_plane<inputs>(w, tables + (row * weight.blocks + b) * block_tables, weight.block, plane, totals);
      for (int r = 0; r < kTall; ++r) values[r] = static_cast<float>(totals[r]);
      const int64_t group = b / weight.blocks_per_scale, place = b * x.rows + row;
      unroll<4>([&](auto k) {
        const TileScales scales(weight, 4 * tall + k);
        const F32x16 sum = splat(static_cast<float>(x.sums[place]));
        const F32x16 value = fma(scales.minus_zero(group), sum, load(values + k * kRows));
        sums[k] = fma(mul(scales.scale(group), splat(x.scale[place])), value, sums[k]);
      });
    }
    unroll<4>([&](auto k) { write(y, weight.out, row, 4 * tall + k, sums[k]); });
  }
}

template <int inputs>
void run(const Weight& weight, const QuantizedRows& x, const Output& y, int threads) {
  thread_local Scratch<uint8_t> scratch;
  const int64_t block_tables = int64_t{weight.block} / inputs * kTable;
  uint8_t* tables = scratch.get(static_cast<size_t>(x.rows * weight.blocks * block_tables));
  parallel_for(threads, x.rows * weight.blocks, [&](int64_t i, int) {
    const int64_t row = i / weight.blocks, b = i % weight.blocks;
    make_tables<inputs>(x.codes + (b * x.rows + row) * weight.block, weight.block, tables + i * block_tables);
  });
  parallel_for(threads, weight.out / kTall, [&](int64_t tall, int) { run_tile<inputs>(weight, x, tables, y, tall); });
}

}  // namespace

void linear_sums(const Weight& weight, const QuantizedRows& x, bool ternary, const Output& y, int threads) {
  ternary ? run<2>(weight, x, y, threads) : run<4>(weight, x, y, threads);
}

}  // namespace bw::BW_ISA
