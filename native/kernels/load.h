// Activations of any float type as fp32.
#pragma once

#include "core/weight.h"
#include "simd/simd.h"

namespace bw::BW_ISA {

inline F32x16 load_floats(const void* x, Float type, int64_t index) {
  if (type == Float::f32) return load(static_cast<const float*>(x) + index);
  const uint16_t* half = static_cast<const uint16_t*>(x) + index;
  return type == Float::f16 ? load_f16(half) : load_bf16(half);
}

inline float load_float(const void* x, Float type, int64_t index) {
  if (type == Float::f32) return static_cast<const float*>(x)[index];
  const uint16_t half = static_cast<const uint16_t*>(x)[index];
  return type == Float::f16 ? from_f16(half) : from_bf16(half);
}

// `count` values from x[start], zeros up to `size`.
inline void load_padded(const void* x, Float type, int64_t start, int64_t count, int64_t size, float* values) {
  int64_t k = 0;
  for (; k + 16 <= count; k += 16) store(values + k, load_floats(x, type, start + k));
  for (; k < count; ++k) values[k] = load_float(x, type, start + k);
  for (; k < size; ++k) values[k] = 0;
}

}  // namespace bw::BW_ISA
