// Products bit by bit: a code of p bits times an activation of q bits is the sum over pairs of bits of 2^(i + j) times
// the number of inputs where both are set. Exact for every p and q; the cost is p q.
#include "core/pool.h"
#include "core/scratch.h"
#include "core/table.h"
#include "kernels/planes.h"
#include "kernels/tile.h"
#include "kernels/variants.h"
#include "simd/bytes.h"

namespace bw::BW_ISA {
namespace {

constexpr int kInputs = 32;  // of a lane of a plane's vector

// Bits of the activations in the order of a weight's plane of one bit: words[row][bit][vector], bit 8 j + f of a word
// is input 32 v + 4 f + j.
void cut_bits(const QuantizedRows& x, int bits, int32_t lowest, uint32_t* words, int threads) {
  const int64_t vectors = x.blocks * x.block / kInputs;
  parallel_for(x.rows > 1 ? threads : 1, x.rows, [&](int64_t row, int) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t first = v * kInputs, b = first / x.block;
      const int8_t* codes = x.codes + (b * x.rows + row) * x.block + first % x.block;
      uint32_t planes[8] = {};
      for (int k = 0; k < kInputs; ++k) {
        const uint32_t code = static_cast<uint32_t>(codes[k] - lowest);
        const int place = 8 * (k & 3) + (k >> 2);
        for (int j = 0; j < 8; ++j) planes[j] |= (code >> j & 1) << place;
      }
      for (int j = 0; j < bits; ++j) words[(row * bits + j) * vectors + v] = planes[j];
    }
  });
}

// The sum over `count` vectors of code * (activation - lowest).
template <int p>
inline I32x16 products(const uint8_t* w, int64_t plane_bytes, const uint32_t* words, int64_t stride, int bits,
                       int64_t count) {
  I32x16 total = zero_i32();
  for (int j = 0; j < bits; ++j) {
    I32x16 sums[p];
    for (I32x16& sum : sums) sum = zero_i32();
    for (int64_t v = 0; v < count; ++v) {
      const U8x64 x = splat_word(words[j * stride + v]);
      unroll<p>([&](auto i) {
        sums[i] = add(sums[i], count_bits(bits_and(load_bytes(w + i * plane_bytes + v * kVector), x)));
      });
    }
    I32x16 shifted = sums[0];
    unroll<p - 1>([&](auto i) { shifted = add(shifted, shift_left<i + 1>(sums[i + 1])); });
    total = add(total, mul(shifted, splat_i32(1 << j)));
  }
  return total;
}

template <int p>
void run_tile(const Weight& weight, const QuantizedRows& x, const BitRows& bits, const Output& y, int64_t tile) {
  const TileScales scales(weight, tile);
  const int64_t vectors = x.blocks * x.block / kInputs, plane_bytes = weight.tiles() * vectors * kVector;
  const uint8_t* w = weight.codes + tile * vectors * kVector;
  const int64_t step = weight.blocks_per_scale * x.block / kInputs;
  for (int64_t row = 0; row < x.rows; ++row) {
    const uint32_t* words = bits.words + row * bits.bits * vectors;
    F32x16 result = zero_f32();
    for (int64_t group = 0; group < weight.groups; ++group) {
      const int64_t first = group * step, count = vectors - first < step ? vectors - first : step;
      int32_t sum = 0;
      for (int64_t b = first * kInputs / x.block; b < (first + count) * kInputs / x.block; ++b)
        sum += x.sums[b * x.rows + row];
      const I32x16 some = products<p>(w + first * kVector, plane_bytes, words + first, vectors, bits.bits, count);
      // Codes start at `lowest`; the sums of the weight's codes bring that in.
      alignas(64) float counts[kRows];
      for (int r = 0; r < kRows; ++r)
        counts[r] = static_cast<float>(int64_t{bits.counts[(tile * weight.groups + group) * kRows + r]} * bits.lowest);
      const F32x16 whole = add(to_f32(some), load(counts));
      const F32x16 value = fma(scales.minus_zero(group), splat(static_cast<float>(sum)), whole);
      result = fma(mul(scales.scale(group), splat(x.scale[row])), value, result);
    }
    write(y, weight.out, row, tile, result);
  }
}

}  // namespace

void linear_bits(const Weight& weight, const QuantizedRows& x, int bits, int32_t lowest, const int32_t* counts,
                 const Output& y, int threads) {
  thread_local Scratch<uint32_t> scratch;
  const int64_t vectors = x.blocks * x.block / kInputs;
  uint32_t* words = scratch.get(static_cast<size_t>(x.rows * bits * vectors));
  cut_bits(x, bits, lowest, words, threads);
  const BitRows cut{words, counts, bits, lowest};
  with_bits(weight.bits, [&](auto p) {
    parallel_for(threads, weight.tiles(), [&](int64_t tile, int) { run_tile<p>(weight, x, cut, y, tile); });
  });
}

}  // namespace bw::BW_ISA
