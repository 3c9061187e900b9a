// Ternary weights, five in a byte, times 8-bit activations.
//
// With q_0 the stored byte and q_{i+1} = 3 q_i mod 256 the digit i is d_i = (3 q_i - q_{i+1}) / 256. So the sum of
// d_i x_i is the sum over i = 0 .. 5 of q_i (3 x_i - x_{i-1}) / 256 with x_{-1} = x_5 = 0: nothing is decoded, each step
// is a dot product and two additions of bytes. The factors have 10 bits; they are split into 8 h + l, both in a byte.
#include <cstring>

#include "core/pool.h"
#include "core/table.h"
#include "kernels/panel.h"
#include "kernels/variants.h"

namespace bw::BW_ISA {
namespace {

constexpr int kSteps = 6;
constexpr int kDigits = 5;
constexpr int kDeepest = TernaryWeight::kBlock / TernaryWeight::kInputs;  // vectors of a block
constexpr int64_t kAhead = 4096;

// Factors of the steps: [vectors][6][h 4 bytes, l 4 bytes].
void prepare_factors(const int8_t* codes, int64_t vectors, int8_t* factors) {
  for (int64_t v = 0; v < vectors; ++v) {
    const int8_t* x = codes + v * TernaryWeight::kInputs;
    for (int i = 0; i < kSteps; ++i) {
      for (int j = 0; j < 4; ++j) {
        const int here = i < kDigits ? x[4 * i + j] : 0, before = i > 0 ? x[4 * (i - 1) + j] : 0;
        const int factor = 3 * here - before;
        factors[(v * kSteps + i) * 8 + j] = static_cast<int8_t>(factor >> 3);
        factors[(v * kSteps + i) * 8 + 4 + j] = static_cast<int8_t>(factor & 7);
      }
    }
  }
}

// Products of `vectors` vectors, up to a block of them, four side by side.
inline I32x16 products(const uint8_t* w, const int8_t* factors, int vectors) {
  I32x16 high[4], low[4];
  unroll<4>([&](auto s) { high[s] = zero_i32(), low[s] = zero_i32(); });
  const auto several = [&](int v, auto count) {
    U8x64 q[count];
    unroll<count>([&](auto s) {
      q[s] = load_bytes(w + (v + s) * kVector);
      prefetch(w + (v + s) * kVector + kAhead);
    });
    unroll<kSteps>([&](auto i) {
      unroll<count>([&](auto s) {
        const int8_t* factor = factors + ((v + s) * kSteps + i) * 8;
        high[s] = dot<255>(high[s], q[s], factor);
        low[s] = dot<255>(low[s], q[s], factor + 4);
        if constexpr (i + 1 < kSteps) q[s] = add_bytes(q[s], add_bytes(q[s], q[s]));
      });
    });
  };
  int v = 0;
  for (; v + 4 <= vectors; v += 4) several(v, std::integral_constant<int, 4>{});
  for (; v < vectors; ++v) several(v, std::integral_constant<int, 1>{});
  const I32x16 upper = add(add(high[0], high[1]), add(high[2], high[3]));
  const I32x16 lower = add(add(low[0], low[1]), add(low[2], low[3]));
  return shift_right<8>(add(shift_left<3>(upper), lower));
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

void one_row(const TernaryWeight& weight, const QuantizedRows& x, const int8_t* factors, const Output& y,
             int64_t tile) {
  const Weight plain = as_weight(weight);
  const TileScales scales(plain, tile);
  const uint8_t* w = weight.codes + tile * weight.vectors() * kVector;
  F32x16 sum = zero_f32();
  for (int64_t b = 0; b < weight.blocks(); ++b) {
    const int64_t v = b * kDeepest;
    const I32x16 total = products(w + v * kVector, factors + v * kSteps * 8, vectors_of_block(weight, b));
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
  thread_local Scratch<int8_t> scratch;
  int8_t* factors = scratch.get(static_cast<size_t>(weight.vectors()) * kSteps * 8);
  prepare_factors(x.codes, weight.vectors(), factors);
  parallel_for(threads, (tiles + 3) / 4, [&](int64_t chunk, int) {
    for (int64_t tile = 4 * chunk; tile < 4 * chunk + 4 && tile < tiles; ++tile) one_row(weight, x, factors, y, tile);
  });
}

}  // namespace bw::BW_ISA
