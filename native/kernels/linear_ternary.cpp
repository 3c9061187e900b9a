// Ternary weights, five in a byte, times 8-bit activations.
//
// With q_0 the stored byte and q_{i+1} = 3 q_i mod 256 the digit i is d_i = (3 q_i - q_{i+1}) / 256. So the sum of d_i
// x_i is (3 A - B) / 256 with A the sum of q_i x_i and B that of q_{i+1} x_i: nothing is decoded, a digit costs two dot
// products and two additions of bytes.
#include <cstring>

#include "core/pool.h"
#include "core/shares.h"
#include "core/table.h"
#include "kernels/ahead.h"
#include "kernels/panel.h"
#include "kernels/variants.h"

namespace bw::BW_ISA {
namespace {

constexpr int kDigits = 5;
constexpr int kDeepest = TernaryWeight::kBlock / TernaryWeight::kInputs;  // vectors of a block
constexpr int kSide = kLean ? 1 : kFieldsInPlace ? 4 : 2;                 // vectors side by side in registers

// Sum of digit * x over `vectors` vectors, up to a block of them.
template <bool far>
inline I32x16 products(const uint8_t* w, const int8_t* x, int vectors) {
  I32x16 here[kSide], next[kSide];
  unroll<kSide>([&](auto s) { here[s] = zero_i32(), next[s] = zero_i32(); });
  const auto several = [&](int v, auto count) {
    U8x64 q[count];
    unroll<count>([&](auto s) {
      q[s] = load_bytes(w + (v + s) * kVector);
      ahead<far>(w + (v + s) * kVector);
    });
    unroll<kDigits>([&](auto i) {
      unroll<count>([&](auto s) {
        const int8_t* four = x + (v + s) * TernaryWeight::kInputs + 4 * i;
        here[s] = dot<255>(here[s], q[s], four);
        q[s] = add_bytes(q[s], add_bytes(q[s], q[s]));
        next[s] = dot<255>(next[s], q[s], four);
      });
    });
  };
  int v = 0;
  for (; v + kSide <= vectors; v += kSide) several(v, std::integral_constant<int, kSide>{});
  for (; v < vectors; ++v) several(v, std::integral_constant<int, 1>{});
  unroll<kSide - 1>([&](auto s) { here[0] = add(here[0], here[s + 1]), next[0] = add(next[0], next[s + 1]); });
  const I32x16 thrice = add(here[0], add(here[0], here[0]));
  return shift_right<8>(sub(thrice, next[0]));
}

// Digits of a vector as bytes [5][64].
inline void digits(const uint8_t* w, uint8_t* bytes) {
  U8x64 q = load_bytes(w);
  unroll<kDigits>([&](auto i) {
    // 3 q reaches 256 from q = 86 and 512 from q = 171.
    const U8x64 one = min_bytes(drop_bytes(q, splat_byte(85)), splat_byte(1));
    const U8x64 two = min_bytes(drop_bytes(q, splat_byte(170)), splat_byte(1));
    store_bytes(bytes + i * kVector, add_bytes(one, two));
    if constexpr (i + 1 < kDigits) q = add_bytes(q, add_bytes(q, q));
  });
}

Weight as_weight(const TernaryWeight& ternary) {
  Weight weight;
  weight.out = ternary.out;
  weight.in = ternary.in;
  weight.scale = ternary.scale;
  weight.scale_type = ternary.scale_type;
  weight.zero = 1;
  return weight;
}

// Sum of (digit - 1) * x.
F32x16 centred(const TileScales& scales, I32x16 products, int32_t sum) {
  return fma(scales.minus_zero(0), splat(static_cast<float>(sum)), to_f32(products));
}

int vectors_of_block(const TernaryWeight& weight, int64_t b) {
  const int64_t left = weight.vectors() - b * kDeepest;
  return static_cast<int>(left < kDeepest ? left : kDeepest);
}

template <bool far>
void one_row(const TernaryWeight& weight, const QuantizedRows& x, const Output& y, int64_t tile) {
  const Weight plain = as_weight(weight);
  const TileScales scales(plain, tile);
  const uint8_t* w = weight.codes + tile * weight.vectors() * kVector;
  F32x16 sum = zero_f32();
  for (int64_t b = 0; b < weight.blocks(); ++b) {
    const I32x16 total = products<far>(w + b * kDeepest * kVector, x.codes + b * x.block, vectors_of_block(weight, b));
    sum = fma(splat(x.scale[b]), centred(scales, total, x.sums[b]), sum);
  }
  write(y, weight.out, 0, tile, mul(sum, scales.scale(0)));
}

void many_rows(const TernaryWeight& weight, const QuantizedRows& x, const Output& y, int64_t tile) {
  const Weight plain = as_weight(weight);
  const TileScales scales(plain, tile);
  alignas(64) uint8_t bytes[kDeepest * kDigits * kVector];
  thread_local Scratch<float> scratch;
  float* sums = scratch.get(static_cast<size_t>(x.rows) * kRows);
  std::memset(sums, 0, sizeof(float) * static_cast<size_t>(x.rows) * kRows);
  for (int64_t b = 0; b < weight.blocks(); ++b) {
    const int vectors = vectors_of_block(weight, b);
    const uint8_t* w = weight.codes + (tile * weight.vectors() + b * kDeepest) * kVector;
    for (int v = 0; v < vectors; ++v) digits(w + v * kVector, bytes + v * kDigits * kVector);
    const int64_t place = b * x.rows;
    panel<false, 127>({bytes, nullptr, vectors * kDigits}, x.codes + place * x.block, x.block, x.rows,
                      [&](int64_t row, I32x16 total) {
                        const F32x16 value = centred(scales, total, x.sums[place + row]);
                        float* at = sums + row * kRows;
                        store(at, fma(splat(x.scale[place + row]), value, load(at)));
                      });
  }
  for (int64_t row = 0; row < x.rows; ++row)
    write(y, weight.out, row, tile, mul(load(sums + row * kRows), scales.scale(0)));
}

}  // namespace

void linear_ternary(const TernaryWeight& weight, const QuantizedRows& x, const Output& y, int threads) {
  const int64_t tiles = weight.tiles();
  if (x.rows == 0) return;
  if (x.rows > 1) {
    parallel_for(threads, tiles, [&](int64_t tile, int) { many_rows(weight, x, y, tile); });
    return;
  }
  const Shares shares(tiles, 4, threads);
  with_ahead([&](auto far) {
    parallel_for(threads, shares.chunks(), [&](int64_t chunk, int) {
      for (int64_t tile = shares.first(chunk); tile < shares.last(chunk); ++tile) one_row<far>(weight, x, y, tile);
    });
  });
}

}  // namespace bw::BW_ISA
