// What all products share: the parameters of a tile, and the way of its sums into the output.
#pragma once

#include <cstring>

#include "core/weight.h"
#include "simd/simd.h"

namespace bw::BW_ISA {

// Scales and zero points of one tile.
class TileScales {
 public:
  TileScales(const Weight& weight, int64_t tile) : weight_(weight), start_(tile * weight.groups * kRows) {}

  F32x16 scale(int64_t group) const {
    const int64_t place = start_ + group * kRows;
    if (weight_.scale_type == Float::f32) return load(static_cast<const float*>(weight_.scale) + place);
    const uint16_t* half = static_cast<const uint16_t*>(weight_.scale) + place;
    return weight_.scale_type == Float::f16 ? load_f16(half) : load_bf16(half);
  }

  // Asks for the scales of groups that come later.
  void ahead(int64_t group) const {
    const int64_t size = weight_.scale_type == Float::f32 ? 4 : 2;
    prefetch_second(static_cast<const char*>(weight_.scale) + (start_ + group * kRows) * size + 512);
  }

  // -zero: the sum of (code - zero) * x is fma(minus_zero, sum of x, sum of code * x). For whole zero points and 8-bit
  // activations that is exact: a block's sums stay below 2^24.
  F32x16 minus_zero(int64_t group) const {
    const int64_t place = start_ + group * kRows;
    F32x16 zero = splat(static_cast<float>(weight_.zero));
    if (weight_.zero_codes) zero = to_f32(load_u8_as_i32(weight_.zero_codes + place));
    if (weight_.zeros) zero = load(weight_.zeros + place);
    return sub(zero_f32(), zero);
  }

 private:
  const Weight& weight_;
  int64_t start_;
};

// Writes the sums of a tile for one row of activations.
inline void write(const Output& output, int64_t out, int64_t row, int64_t tile, F32x16 sums) {
  const int64_t first = tile * kRows, count = out - first < kRows ? out - first : kRows;
  alignas(64) float values[kRows];
  if (output.bias) {
    alignas(64) float bias[kRows] = {};
    std::memcpy(bias, output.bias + first, static_cast<size_t>(count) * sizeof(float));
    sums = add(sums, load(bias));
  }
  const int64_t place = row * out + first;
  if (output.type == Float::f32) {
    float* target = static_cast<float*>(output.y) + place;
    if (count == kRows) return store(target, sums);
    store(values, sums);
    std::memcpy(target, values, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  uint16_t* target = static_cast<uint16_t*>(output.y) + place;
  alignas(64) uint16_t halves[kRows];
  uint16_t* to = count == kRows ? target : halves;
  output.type == Float::f16 ? store_f16(to, sums) : store_bf16(to, sums);
  if (count != kRows) std::memcpy(target, halves, static_cast<size_t>(count) * sizeof(uint16_t));
}

}  // namespace bw::BW_ISA
