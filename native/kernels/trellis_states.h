// States of trellis-coded columns, and the numbers that they mean; 16 rows in lanes.
#pragma once

#include "core/trellis.h"
#include "kernels/planes.h"
#include "simd/words.h"

namespace bw::BW_ISA {

// Calls body(i, state) for the 32 columns of a run; `before` are the last words of the columns before it.
template <int k, class Body>
inline void each_state(const uint32_t* words, I32x16 before, I32x16 mask, Body&& body) {
  I32x16 w[k + 1];
  w[0] = before;
  unroll<k>([&](auto j) { w[j + 1] = load_word_lanes(words + j * kRows); });
  unroll<kTrellisRun>([&](auto i) {
    constexpr int end = k * (i + 1), j = (end - 1) / 32, shift = 32 * (j + 1) - end;
    if constexpr (shift + kTrellisMostState <= 32) {
      body(i, bits_and(shift_down<shift>(w[j + 1]), mask));
    } else {
      body(i, bits_and(window<shift>(w[j], w[j + 1]), mask));
    }
  });
}

// 1MAD (QTIP, arXiv:2406.11235, algorithm 1): a linear congruence; the sum of its four bytes is close to normal.
struct OneMad {
  static inline I32x16 word(I32x16 state) { return add(mul(state, splat_i32(34038481)), splat_i32(76625530)); }
  // The sum of the bytes, 0 to 1020.
  static inline I32x16 sum(I32x16 word) {
    // Bytes above 127 are no trouble beside factors of 1.
    return dot_vectors(zero_i32(), as_bytes(word), splat_byte(1));
  }
  static inline F32x16 number(I32x16 state) { return to_f32(sub(sum(word(state)), splat_i32(510))); }
};

// 3INST (algorithm 2): another one; sign, two bits of the exponent and the mantissa of each half are turned in the fp16
// number 0.922 (0x3b60), and both halves are added. Here the sum is exact. As fp32, bits 0 .. 11 of a half lie 13 bits
// higher, and 0.922 is 0x3f6c0000.
struct ThreeInst {
  static inline F32x16 number(I32x16 state) {
    const I32x16 x = add(mul(state, splat_i32(89226354)), splat_i32(64248484));
    const I32x16 field = splat_i32(0x01ffe000), sign = splat_i32(INT32_MIN), base = splat_i32(0x3f6c0000);
    const I32x16 low = bits_xor(bits_xor(bits_and(shift_left<13>(x), field), bits_and(shift_left<16>(x), sign)), base);
    const I32x16 high = bits_xor(bits_xor(bits_and(shift_down<3>(x), field), bits_and(x, sign)), base);
    return add(as_floats(low), as_floats(high));
  }
};

}  // namespace bw::BW_ISA
