// Ternary weights, three in five bits, without multiplying (the TL2 form of bitnet.cpp): 9 d0 + 3 d1 + d2 with digits
// of -1, 0, 1 is a sign and a size of 0 .. 13. Sizes are looked up in a table of the sums of three activations, 64 rows
// at a time; a sum has two bytes, so two lookups find it whole, and the result is that of the integer product.
#include "core/pool.h"
#include "core/scratch.h"
#include "core/table.h"
#include "kernels/planes.h"
#include "kernels/tile.h"
#include "kernels/variants.h"
#include "simd/bytes.h"

namespace bw::BW_ISA {
namespace {

constexpr int kTall = TernaryWeight::kTall;
constexpr int kTriples = 8;                                                   // of a unit
constexpr int kTable = 32;                                                    // bytes of a table: 16 low, 16 high
constexpr int kDeepest = TernaryWeight::kTripleBlock / TernaryWeight::kUnit;  // units of a block
constexpr int kSum = 3 * 128;                                                 // no sum of three activations is larger
static_assert(kDeepest * kTriples * kSum < 1 << 15, "the sums of a block stay in 16 bits");

// The sums of one triple for the sizes 0 .. 13, in two's complement: 16 low bytes, 16 high ones.
void make_table(const int8_t* x, uint8_t* table) {
  const int a = x[0], b = x[1], c = x[2];
  const int sums[16] = {0,     c, b - c, b,         b + c, a - b - c, a - b, a - b + c,
                        a - c, a, a + c, a + b - c, a + b, a + b + c, 0,     0};
  for (int e = 0; e < 16; ++e) {
    table[e] = static_cast<uint8_t>(sums[e]);
    table[16 + e] = static_cast<uint8_t>(sums[e] >> 8);
  }
}

// 16-bit sums of 64 rows: of rows 0 .. 31 in `even`, 32 .. 63 in `odd`. A negative triple adds the complement of its
// sum; `high` are the upper bytes of all, `signs` how many complements lack a one.
struct Sums {
  U8x64 even = splat_byte(0), odd = splat_byte(0), high = splat_byte(0);
};

inline void add_triple(const uint8_t* table, U8x64 size, U8x64 mask, Sums& sums) {
  const U8x64 low = bits_xor(lookup_bytes(repeat16(table), size), mask);
  sums.even = add_pairs(sums.even, bits_and(low, splat_word(0x00ff00ffu)));
  sums.odd = add_pairs(sums.odd, odd_bytes(low));
  sums.high = add_bytes(sums.high, bits_xor(lookup_bytes(repeat16(table + 16), size), mask));
}

// Adds the units of a block for `rows` rows of activations; `stride` bytes lie between their tables.
template <int rows>
inline void add_units(const uint8_t* w, const uint8_t* tables, int64_t stride, int units,
                      int16_t (&totals)[rows][kTall]) {
  alignas(16) static constexpr uint8_t kCounts[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
  const U8x64 nibble = splat_byte(15), counts = repeat16(kCounts);
  Sums sums[rows];
  U8x64 negative = splat_byte(0);
  for (int unit = 0; unit < units; ++unit, w += TernaryWeight::kUnitBytes, tables += kTriples * kTable) {
    const U8x64 signs = load_bytes(w + 4 * kVector);
    prefetch(w + 4096);
    negative = add_bytes(negative, add_bytes(lookup_bytes(counts, bits_and(signs, nibble)),
                                             lookup_bytes(counts, shift_right<4>(signs, nibble))));
    unroll<4>([&](auto v) {
      const U8x64 packed = load_bytes(w + v * kVector);
      const U8x64 first = bits_and(packed, nibble), second = shift_right<4>(packed, nibble);
      const U8x64 one = mask_of_bit<2 * v>(signs), two = mask_of_bit<2 * v + 1>(signs);
      unroll<rows>([&](auto r) {
        const uint8_t* table = tables + r * stride + 2 * v * kTable;
        add_triple(table, first, one, sums[r]);
        add_triple(table + kTable, second, two, sums[r]);
      });
    });
  }
  const U8x64 even_signs = bits_and(negative, splat_word(0x00ff00ffu)), odd_signs = odd_bytes(negative);
  const U8x64 upper = splat_word(0xff00ff00u);
  unroll<rows>([&](auto r) {
    uint8_t* to = reinterpret_cast<uint8_t*>(totals[r]);
    store_bytes(to, add_pairs(add_pairs(sums[r].even, raised_bytes(sums[r].high)), even_signs));
    store_bytes(to + kVector, add_pairs(add_pairs(sums[r].odd, bits_and(sums[r].high, upper)), odd_signs));
  });
}

struct Tables {
  const uint8_t* bytes;  // [rows][units][8][32]
  int64_t units;
};

template <int rows>
void run_rows(const TernaryWeight& weight, const Weight& plain, const QuantizedRows& x, const Tables& tables,
              const Output& y, int64_t tall, int64_t row) {
  const int64_t stride = tables.units * kTriples * kTable;
  const uint8_t* w = weight.codes + tall * tables.units * TernaryWeight::kUnitBytes;
  F32x16 sums[rows][4];
  for (auto& each : sums)
    for (F32x16& sum : each) sum = zero_f32();
  for (int64_t b = 0; b < x.blocks; ++b) {
    const int64_t unit = b * kDeepest, left = tables.units - unit;
    const uint8_t* table = tables.bytes + row * stride + unit * kTriples * kTable;
    alignas(64) int16_t totals[rows][kTall];
    alignas(64) float values[kTall];
    add_units<rows>(w + unit * TernaryWeight::kUnitBytes, table, stride,
                    static_cast<int>(left < kDeepest ? left : kDeepest), totals);
    unroll<rows>([&](auto r) {
      for (int i = 0; i < kTall; ++i) values[i] = totals[r][i];
      const F32x16 scale = splat(x.scale[b * x.rows + row + r]);
      unroll<4>([&](auto k) { sums[r][k] = fma(scale, load(values + k * kRows), sums[r][k]); });
    });
  }
  unroll<4>([&](auto k) {
    const int64_t tile = 4 * tall + k;
    if (tile >= weight.tiles()) return;
    const F32x16 scale = TileScales(plain, tile).scale(0);
    unroll<rows>([&](auto r) { write(y, weight.out, row + r, tile, mul(sums[r][k], scale)); });
  });
}

}  // namespace

void linear_triples(const TernaryWeight& weight, const QuantizedRows& x, const Output& y, int threads) {
  thread_local Scratch<uint8_t> scratch;
  const int64_t units = weight.units(), per_row = units * kTriples;
  uint8_t* bytes = scratch.get(static_cast<size_t>(x.rows * per_row * kTable));
  parallel_for(threads, x.rows * x.blocks, [&](int64_t i, int) {
    const int64_t row = i / x.blocks, b = i % x.blocks, first = b * kDeepest * kTriples;
    const int64_t left = per_row - first, count = left < kDeepest * kTriples ? left : kDeepest * kTriples;
    const int8_t* codes = x.codes + (b * x.rows + row) * x.block;
    for (int64_t t = 0; t < count; ++t) make_table(codes + 3 * t, bytes + (row * per_row + first + t) * kTable);
  });
  Weight plain;
  plain.out = weight.out;
  plain.scale = weight.scale;
  plain.scale_type = weight.scale_type;
  parallel_for(threads, weight.talls(), [&](int64_t tall, int) {
    int64_t row = 0;
    if constexpr (!kLean)
      for (; row + 2 <= x.rows; row += 2) run_rows<2>(weight, plain, x, {bytes, units}, y, tall, row);
    for (; row < x.rows; ++row) run_rows<1>(weight, plain, x, {bytes, units}, y, tall, row);
  });
}

}  // namespace bw::BW_ISA
