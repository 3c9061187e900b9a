// Products with points of E8P: sixty-four points at a time become bytes, which are whole numbers of steps.
//
// A block of a tile is decoded into the first cache and used by all rows of activations, in integers or in fp32. The
// words of 16 rows and 4 spans are two vectors; coordinate j of all 64 points is then one vector, and its four bytes in
// a lane are inputs j, 8 + j, 16 + j and 24 + j. The activations lie in that order, so nothing is transposed.
#include <cstring>

#include "core/pool.h"
#include "core/scratch.h"
#include "kernels/panel.h"
#include "kernels/vectors.h"
#include "simd/lookup.h"

namespace bw::BW_ISA {
namespace {

constexpr int kInputs = 32;  // inputs of a run of planes

// Bit `from` of every byte, at bit `to`.
template <int from, int to>
inline U8x64 moved_bit(U8x64 v) {
  constexpr uint8_t mask = 1 << to;
  if constexpr (from >= to) {
    return shift_right<from - to>(v, splat_byte(mask));
  } else {
    return bits_and(shift_left_bytes<to - from>(v), splat_byte(mask));
  }
}

// The parity of every byte, in its lowest bit.
inline U8x64 parity(U8x64 v) {
  v = bits_xor(v, shift_right<4>(v, splat_byte(15)));
  v = bits_xor(v, shift_right<2>(v, splat_byte(3)));
  return bits_xor(v, shift_right<1>(v, splat_byte(1)));
}

// Writes (or adds) the bytes of 64 points, [8][64].
template <bool added>
inline void decode_points(U8x64 pattern, U8x64 signs, const uint8_t* patterns, const uint8_t* values, uint8_t* bytes) {
  const U8x64 fields[2] = {lookup256(patterns, pattern), lookup256(patterns + 256, pattern)};
  const U8x64 table = repeat16(values), shift = moved_bit<7, 3>(signs);
  // The last sign: an even number of changes, and one more where the pattern's sum is odd.
  U8x64 last = bits_xor(bits_and(fields[0], splat_byte(0x55)), bits_and(fields[1], splat_byte(0x55)));
  last = moved_bit<0, 2>(parity(bits_xor(last, bits_and(signs, splat_byte(0x7f)))));
  unroll<kSpan>([&](auto j_) {
    constexpr int j = j_;
    const U8x64 size = shift_right<2 * (j % 4)>(fields[j / 4], splat_byte(3));
    U8x64 sign = last;
    if constexpr (j < 7) sign = moved_bit<j, 2>(signs);
    const U8x64 value = lookup_bytes(table, bits_or(bits_or(size, sign), shift));
    uint8_t* place = bytes + j * kVector;
    if constexpr (added) {
      store_bytes(place, add_bytes(load_bytes(place), value));
    } else {
      store_bytes(place, value);
    }
  });
}

// Adds the second codebook of three bits.
inline void add_short(U8x64 index, const uint8_t* patterns, const uint8_t* values, uint8_t* bytes) {
  const U8x64 table = repeat16(values), low = splat_byte(15);
  unroll<kSpan / 2>([&](auto pair_) {
    constexpr int pair = pair_;
    const U8x64 both = lookup256(patterns + 256 * pair, index);
    uint8_t* place = bytes + 2 * pair * kVector;
    store_bytes(place, add_bytes(load_bytes(place), lookup_bytes(table, bits_and(both, low))));
    place += kVector;
    store_bytes(place, add_bytes(load_bytes(place), lookup_bytes(table, shift_right<4>(both, low))));
  });
}

// A block of a tile as bytes, [block / 4][64].
template <int bits>
inline void decode_block(const uint8_t* w, int block, const LatticeTables& tables, uint8_t* bytes) {
  for (int start = 0; start < block; start += kInputs, w += bits * kVector, bytes += kSpan * kVector) {
    decode_points<false>(load_bytes(w), load_bytes(w + kVector), tables.patterns, tables.values, bytes);
    if constexpr (bits == 3) add_short(load_bytes(w + 2 * kVector), tables.patterns + 512, tables.values + 16, bytes);
    if constexpr (bits == 4)
      decode_points<true>(load_bytes(w + 2 * kVector), load_bytes(w + 3 * kVector), tables.patterns, tables.values + 16,
                          bytes);
  }
}

// Sums of a tile for all rows of activations, `multiply(b, bytes, sums)` block by block.
template <int bits, class Multiply>
void each_block(const Weight& weight, const LatticeTables& tables, int64_t rows, const Output& y, int64_t tile,
                Multiply&& multiply) {
  alignas(64) uint8_t bytes[kRows * 256];
  thread_local Scratch<float> scratch;
  float* sums = scratch.get(static_cast<size_t>(rows) * kRows);
  std::memset(sums, 0, sizeof(float) * static_cast<size_t>(rows) * kRows);
  const uint8_t* w = weight.codes + tile * weight.tile_bytes();
  for (int64_t b = 0; b < weight.blocks; ++b, w += weight.block_bytes()) {
    decode_block<bits>(w, weight.block, tables, bytes);
    multiply(b, bytes, sums);
  }
  for (int64_t row = 0; row < rows; ++row) write(y, weight.out, row, tile, load(sums + row * kRows));
}

template <int bits>
void int8_tile(const Weight& weight, const LatticeTables& tables, const QuantizedRows& x, const Output& y,
               int64_t tile) {
  const TileScales scales(weight, tile);
  constexpr int most = bits == 4 ? 255 : 127;
  each_block<bits>(weight, tables, x.rows, y, tile, [&](int64_t b, const uint8_t* bytes, float* sums) {
    const int64_t group = b / weight.blocks_per_scale, place = b * x.rows;
    const F32x16 scale = scales.scale(group), minus_zero = scales.minus_zero(group);
    panel<false, most>({bytes, nullptr, weight.block / 4}, x.codes + place * weight.block, weight.block, x.rows,
                       [&](int64_t row, I32x16 total) {
                         const F32x16 offset = splat(static_cast<float>(x.sums[place + row]));
                         const F32x16 value = fma(minus_zero, offset, to_f32(total));
                         float* sum = sums + row * kRows;
                         store(sum, fma(mul(scale, splat(x.scale[place + row])), value, load(sum)));
                       });
  });
}

template <int rows>
inline void float_rows(const uint8_t* bytes, const float* x, int block, F32x16 zero, F32x16 scale, float* sums) {
  F32x16 here[rows];
  unroll<rows>([&](auto r) { here[r] = zero_f32(); });
  for (int q = 0; q < block / 4; ++q) {
    const U8x64 four = load_bytes(bytes + q * kVector);
    unroll<4>([&](auto j) {
      const F32x16 w = add(to_f32(byte_of_lane<j>(four)), zero);
      unroll<rows>([&](auto r) { here[r] = fma(w, splat(x[r * block + 4 * q + j]), here[r]); });
    });
  }
  unroll<rows>([&](auto r) { store(sums + r * kRows, fma(scale, here[r], load(sums + r * kRows))); });
}

template <int bits>
void float_tile(const Weight& weight, const LatticeTables& tables, const FloatRows& x, const Output& y, int64_t tile) {
  const TileScales scales(weight, tile);
  const int block = weight.block;
  each_block<bits>(weight, tables, x.rows, y, tile, [&](int64_t b, const uint8_t* bytes, float* sums) {
    const int64_t group = b / weight.blocks_per_scale;
    const F32x16 scale = scales.scale(group), zero = scales.minus_zero(group);
    const float* values = x.values + b * x.rows * block;
    int64_t row = 0;
    if constexpr (!kLean)
      for (; row + 8 <= x.rows; row += 8)
        float_rows<8>(bytes, values + row * block, block, zero, scale, sums + row * kRows);
    for (; row < x.rows; ++row) float_rows<1>(bytes, values + row * block, block, zero, scale, sums + row * kRows);
  });
}

template <class Body>
void with_lattice(int bits, Body&& body) {
  if (bits == 2) return body(std::integral_constant<int, 2>{});
  if (bits == 3) return body(std::integral_constant<int, 3>{});
  body(std::integral_constant<int, 4>{});
}

}  // namespace

void lattice_int8(const Weight& weight, const LatticeTables& tables, const QuantizedRows& x, const Output& y,
                  int threads) {
  if (x.rows == 0) return;
  with_lattice(weight.bits, [&](auto bits) {
    parallel_for(threads, weight.tiles(), [&](int64_t tile, int) { int8_tile<bits>(weight, tables, x, y, tile); });
  });
}

void lattice_float(const Weight& weight, const LatticeTables& tables, const FloatRows& x, const Output& y,
                   int threads) {
  if (x.rows == 0) return;
  with_lattice(weight.bits, [&](auto bits) {
    parallel_for(threads, weight.tiles(), [&](int64_t tile, int) { float_tile<bits>(weight, tables, x, y, tile); });
  });
}

}  // namespace bw::BW_ISA
