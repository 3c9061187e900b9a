// NEON with the dot product of Armv8.2 (every server and phone since 2018, Apple's M1): four vectors of 16 bytes.
#pragma once

#include <arm_neon.h>

#include <cstring>

namespace bw::BW_ISA {

struct U8x64 {
  uint8x16_t v[4];
};
struct I32x16 {
  int32x4_t v[4];
};
struct F32x16 {
  float32x4_t v[4];
};

#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr bool kFieldsInPlace = true;
#else
// Without usdot a field above 127 costs two further instructions, a shift costs one.
constexpr bool kFieldsInPlace = false;
#endif

// Whether loops have one form only, instead of one for each number of rows and tiles that pays.
constexpr bool kLean = false;

#define BW_EACH for (int i = 0; i < 4; ++i)

inline U8x64 load_bytes(const uint8_t* p) {
  U8x64 r;
  BW_EACH r.v[i] = vld1q_u8(p + 16 * i);
  return r;
}
inline void store_bytes(uint8_t* p, U8x64 a) { BW_EACH vst1q_u8(p + 16 * i, a.v[i]); }
inline U8x64 splat_byte(uint8_t value) {
  U8x64 r;
  BW_EACH r.v[i] = vdupq_n_u8(value);
  return r;
}
inline U8x64 bits_and(U8x64 a, U8x64 mask) {
  BW_EACH a.v[i] = vandq_u8(a.v[i], mask.v[i]);
  return a;
}
inline U8x64 bits_or(U8x64 a, U8x64 b) {
  BW_EACH a.v[i] = vorrq_u8(a.v[i], b.v[i]);
  return a;
}
template <int n>
inline U8x64 shift_right(U8x64 a, U8x64 mask) {
  if constexpr (n > 0) BW_EACH a.v[i] = vshrq_n_u8(a.v[i], n);
  return bits_and(a, mask);
}
template <int n>
inline U8x64 shift_left_bytes(U8x64 a) {
  BW_EACH a.v[i] = vshlq_n_u8(a.v[i], n);
  return a;
}

inline I32x16 splat_i32(int32_t value) {
  I32x16 r;
  BW_EACH r.v[i] = vdupq_n_s32(value);
  return r;
}
inline I32x16 zero_i32() { return splat_i32(0); }
inline I32x16 add(I32x16 a, I32x16 b) {
  BW_EACH a.v[i] = vaddq_s32(a.v[i], b.v[i]);
  return a;
}
inline I32x16 sub(I32x16 a, I32x16 b) {
  BW_EACH a.v[i] = vsubq_s32(a.v[i], b.v[i]);
  return a;
}
inline I32x16 mul(I32x16 a, I32x16 b) {
  BW_EACH a.v[i] = vmulq_s32(a.v[i], b.v[i]);
  return a;
}
template <int n>
inline I32x16 shift_right(I32x16 a) {
  if constexpr (n > 0) BW_EACH a.v[i] = vshrq_n_s32(a.v[i], n);
  return a;
}
template <int n>
inline I32x16 shift_left(I32x16 a) {
  BW_EACH a.v[i] = vshlq_n_s32(a.v[i], n);
  return a;
}
inline I32x16 load_u8_as_i32(const uint8_t* p) {
  const uint8x16_t bytes = vld1q_u8(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
  const auto wide = [](uint16x4_t half) { return vreinterpretq_s32_u32(vmovl_u16(half)); };
  return {{wide(vget_low_u16(low)), wide(vget_high_u16(low)), wide(vget_low_u16(high)), wide(vget_high_u16(high))}};
}
template <int j>
inline I32x16 byte_of_lane(U8x64 a) {
  I32x16 r;
  BW_EACH {
    uint32x4_t lanes = vreinterpretq_u32_u8(a.v[i]);
    if constexpr (j > 0) lanes = vshrq_n_u32(lanes, 8 * j);
    r.v[i] = vreinterpretq_s32_u32(vandq_u32(lanes, vdupq_n_u32(255)));
  }
  return r;
}
struct X4 {
  int8x16_t v;
};
inline X4 splat_four(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return {vreinterpretq_s8_s32(vdupq_n_s32(four))};
}
inline U8x64 held(U8x64 a) {
  asm("" : "+w"(a.v[0]), "+w"(a.v[1]), "+w"(a.v[2]), "+w"(a.v[3]));
  return a;
}
template <int most = 255>
inline I32x16 dot(I32x16 acc, U8x64 w, X4 x) {
  const int8x16_t x4 = x.v;
  if constexpr (most <= 127) {
    BW_EACH acc.v[i] = vdotq_s32(acc.v[i], vreinterpretq_s8_u8(w.v[i]), x4);
    return acc;
  }
#if defined(__ARM_FEATURE_MATMUL_INT8)
  BW_EACH acc.v[i] = vusdotq_s32(acc.v[i], w.v[i], x4);
#else
  // w = (w - 128) + 128, where w - 128 is w with its highest bit turned, read as signed; 128 = 64 + 64.
  const int8x16_t half = vdupq_n_s8(64);
  const int32x4_t moved = vdotq_s32(vdotq_s32(vdupq_n_s32(0), half, x4), half, x4);
  BW_EACH {
    const int8x16_t centred = vreinterpretq_s8_u8(veorq_u8(w.v[i], vdupq_n_u8(128)));
    acc.v[i] = vdotq_s32(vaddq_s32(acc.v[i], moved), centred, x4);
  }
#endif
  return acc;
}
template <int most = 255>
inline I32x16 dot(I32x16 acc, U8x64 w, const int8_t* x) {
  return dot<most>(acc, w, splat_four(x));
}

inline F32x16 splat(float value) {
  F32x16 r;
  BW_EACH r.v[i] = vdupq_n_f32(value);
  return r;
}
inline F32x16 zero_f32() { return splat(0); }
inline F32x16 load(const float* p) {
  F32x16 r;
  BW_EACH r.v[i] = vld1q_f32(p + 4 * i);
  return r;
}
inline void store(float* p, F32x16 a) { BW_EACH vst1q_f32(p + 4 * i, a.v[i]); }
inline F32x16 load_f16(const uint16_t* p) {
  F32x16 r;
  BW_EACH r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
  return r;
}
inline F32x16 load_bf16(const uint16_t* p) {
  F32x16 r;
  BW_EACH r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
  return r;
}
inline void store_f16(uint16_t* p, F32x16 a) {
  BW_EACH vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}
inline void store_bf16(uint16_t* p, F32x16 a) {
  BW_EACH {
    const uint32x4_t bits = vreinterpretq_u32_f32(a.v[i]);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t number = vceqq_f32(a.v[i], a.v[i]);
    vst1_u16(p + 4 * i, vshrn_n_u32(vbslq_u32(number, rounded, vorrq_u32(bits, vdupq_n_u32(0x400000))), 16));
  }
}
inline F32x16 add(F32x16 a, F32x16 b) {
  BW_EACH a.v[i] = vaddq_f32(a.v[i], b.v[i]);
  return a;
}
inline F32x16 sub(F32x16 a, F32x16 b) {
  BW_EACH a.v[i] = vsubq_f32(a.v[i], b.v[i]);
  return a;
}
inline F32x16 mul(F32x16 a, F32x16 b) {
  BW_EACH a.v[i] = vmulq_f32(a.v[i], b.v[i]);
  return a;
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  BW_EACH c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return c;
}
// b where one of the two is NaN, as on x86.
inline F32x16 max(F32x16 a, F32x16 b) {
  BW_EACH a.v[i] = vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]);
  return a;
}
inline F32x16 min(F32x16 a, F32x16 b) {
  BW_EACH a.v[i] = vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]);
  return a;
}
inline F32x16 div(F32x16 a, F32x16 b) {
  BW_EACH a.v[i] = vdivq_f32(a.v[i], b.v[i]);
  return a;
}
inline F32x16 round_even(F32x16 a) {
  BW_EACH a.v[i] = vrndnq_f32(a.v[i]);
  return a;
}
inline I32x16 count_greater(I32x16 count, F32x16 a, F32x16 b) {
  // A true comparison is -1.
  BW_EACH count.v[i] = vsubq_s32(count.v[i], vreinterpretq_s32_u32(vcgtq_f32(a.v[i], b.v[i])));
  return count;
}
template <int distance>
inline F32x16 swap_lanes(F32x16 a) {
  if constexpr (distance == 1) BW_EACH a.v[i] = vrev64q_f32(a.v[i]);
  if constexpr (distance == 2) BW_EACH a.v[i] = vextq_f32(a.v[i], a.v[i], 2);
  if constexpr (distance == 4) return {{a.v[1], a.v[0], a.v[3], a.v[2]}};
  if constexpr (distance == 8) return {{a.v[2], a.v[3], a.v[0], a.v[1]}};
  return a;
}
inline F32x16 absolute(F32x16 a) {
  BW_EACH a.v[i] = vabsq_f32(a.v[i]);
  return a;
}
inline F32x16 to_f32(I32x16 a) {
  F32x16 r;
  BW_EACH r.v[i] = vcvtq_f32_s32(a.v[i]);
  return r;
}
inline I32x16 to_i32(F32x16 a) {
  I32x16 r;
  BW_EACH {
    // INT32_MIN for NaN and for values out of range, as on x86.
    const uint32x4_t fits = vcltq_f32(vabsq_f32(a.v[i]), vdupq_n_f32(2147483648.0f));
    r.v[i] = vbslq_s32(fits, vcvtnq_s32_f32(a.v[i]), vdupq_n_s32(INT32_MIN));
  }
  return r;
}
inline float sum(F32x16 a) { return vaddvq_f32(vaddq_f32(vaddq_f32(a.v[0], a.v[1]), vaddq_f32(a.v[2], a.v[3]))); }
inline float largest(F32x16 a) {
  float values[16];
  store(values, a);
  float most = values[0];
  for (float value : values) most = value > most ? value : most;
  return most;
}
inline int32_t sum(I32x16 a) { return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3]))); }
inline void store_low_bytes(int8_t* p, I32x16 a) {
  const int16x8_t low = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
  vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
inline F32x16 lookup16(F32x16 table, I32x16 index) {
  uint8x16x4_t bytes;
  BW_EACH bytes.val[i] = vreinterpretq_u8_f32(table.v[i]);
  F32x16 r;
  BW_EACH {
    const uint32x4_t low = vandq_u32(vreinterpretq_u32_s32(index.v[i]), vdupq_n_u32(15));
    // The four bytes of entry n are 4 n, ..., 4 n + 3.
    const uint32x4_t places = vmlaq_u32(vdupq_n_u32(0x03020100), low, vdupq_n_u32(0x04040404));
    r.v[i] = vreinterpretq_f32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_u32(places)));
  }
  return r;
}
inline F32x16 gather(const float* table, I32x16 index) {
  int32_t places[16];
  float values[16];
  BW_EACH vst1q_s32(places + 4 * i, index.v[i]);
  for (int lane = 0; lane < 16; ++lane) values[lane] = table[places[lane]];
  return load(values);
}
inline void prefetch(const void* p) { __builtin_prefetch(p); }
inline void prefetch_second(const void* p) { __builtin_prefetch(p, 0, 2); }

#undef BW_EACH

}  // namespace bw::BW_ISA
