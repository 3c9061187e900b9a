// Plain loops over 16 lanes: any processor, and the oracle of the others.
#pragma once

#include <cmath>
#include <cstring>

namespace bw::BW_ISA {

struct U8x64 {
  uint8_t v[64];
};
struct I32x16 {
  int32_t v[16];
};
struct F32x16 {
  float v[16];
};

constexpr bool kFieldsInPlace = true;
// Whether loops have one form only, instead of one for each number of rows and tiles that pays.
constexpr bool kLean = true;

#define BW_EACH for (int i = 0; i < 16; ++i)
#define BW_EACH_BYTE for (int i = 0; i < 64; ++i)

inline U8x64 load_bytes(const uint8_t* p) {
  U8x64 r;
  std::memcpy(r.v, p, 64);
  return r;
}
inline void store_bytes(uint8_t* p, U8x64 a) { std::memcpy(p, a.v, 64); }
inline U8x64 splat_byte(uint8_t value) {
  U8x64 r;
  BW_EACH_BYTE r.v[i] = value;
  return r;
}
inline U8x64 bits_and(U8x64 a, U8x64 mask) {
  BW_EACH_BYTE a.v[i] &= mask.v[i];
  return a;
}
inline U8x64 bits_or(U8x64 a, U8x64 b) {
  BW_EACH_BYTE a.v[i] |= b.v[i];
  return a;
}
template <int n>
inline U8x64 shift_right(U8x64 a, U8x64 mask) {
  BW_EACH_BYTE a.v[i] = static_cast<uint8_t>(a.v[i] >> n) & mask.v[i];
  return a;
}
template <int n>
inline U8x64 shift_left_bytes(U8x64 a) {
  BW_EACH_BYTE a.v[i] = static_cast<uint8_t>(a.v[i] << n);
  return a;
}

inline I32x16 splat_i32(int32_t value) {
  I32x16 r;
  BW_EACH r.v[i] = value;
  return r;
}
inline I32x16 zero_i32() { return splat_i32(0); }
// Integers wrap around, as in the instructions of the others.
inline uint32_t bits_of(int32_t value) { return static_cast<uint32_t>(value); }
inline I32x16 add(I32x16 a, I32x16 b) {
  BW_EACH a.v[i] = static_cast<int32_t>(bits_of(a.v[i]) + bits_of(b.v[i]));
  return a;
}
inline I32x16 sub(I32x16 a, I32x16 b) {
  BW_EACH a.v[i] = static_cast<int32_t>(bits_of(a.v[i]) - bits_of(b.v[i]));
  return a;
}
inline I32x16 mul(I32x16 a, I32x16 b) {
  BW_EACH a.v[i] = static_cast<int32_t>(bits_of(a.v[i]) * bits_of(b.v[i]));
  return a;
}
template <int n>
inline I32x16 shift_right(I32x16 a) {
  BW_EACH a.v[i] >>= n;
  return a;
}
template <int n>
inline I32x16 shift_left(I32x16 a) {
  BW_EACH a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << n);
  return a;
}
inline I32x16 load_u8_as_i32(const uint8_t* p) {
  I32x16 r;
  BW_EACH r.v[i] = p[i];
  return r;
}
template <int j>
inline I32x16 byte_of_lane(U8x64 a) {
  I32x16 r;
  BW_EACH r.v[i] = a.v[4 * i + j];
  return r;
}
struct X4 {
  const int8_t* v;
};
inline X4 splat_four(const int8_t* x) { return {x}; }
inline U8x64 held(U8x64 a) { return a; }
template <int most = 255>
inline I32x16 dot(I32x16 acc, U8x64 w, X4 four) {
  const int8_t* x = four.v;
  BW_EACH {
    for (int j = 0; j < 4; ++j) acc.v[i] += w.v[4 * i + j] * x[j];
  }
  return acc;
}

template <int most = 255>
inline I32x16 dot(I32x16 acc, U8x64 w, const int8_t* x) {
  return dot<most>(acc, w, splat_four(x));
}

inline F32x16 splat(float value) {
  F32x16 r;
  BW_EACH r.v[i] = value;
  return r;
}
inline F32x16 zero_f32() { return splat(0); }
inline F32x16 load(const float* p) {
  F32x16 r;
  std::memcpy(r.v, p, 64);
  return r;
}
inline void store(float* p, F32x16 a) { std::memcpy(p, a.v, 64); }
inline F32x16 load_f16(const uint16_t* p) {
  F32x16 r;
  BW_EACH r.v[i] = from_f16(p[i]);
  return r;
}
inline F32x16 load_bf16(const uint16_t* p) {
  F32x16 r;
  BW_EACH r.v[i] = from_bf16(p[i]);
  return r;
}
inline void store_f16(uint16_t* p, F32x16 a) { BW_EACH p[i] = to_f16(a.v[i]); }
inline void store_bf16(uint16_t* p, F32x16 a) { BW_EACH p[i] = to_bf16(a.v[i]); }
inline F32x16 add(F32x16 a, F32x16 b) {
  BW_EACH a.v[i] += b.v[i];
  return a;
}
inline F32x16 sub(F32x16 a, F32x16 b) {
  BW_EACH a.v[i] -= b.v[i];
  return a;
}
inline F32x16 mul(F32x16 a, F32x16 b) {
  BW_EACH a.v[i] *= b.v[i];
  return a;
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  BW_EACH c.v[i] += a.v[i] * b.v[i];
  return c;
}
inline F32x16 max(F32x16 a, F32x16 b) {
  BW_EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return a;
}
inline F32x16 min(F32x16 a, F32x16 b) {
  BW_EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
  return a;
}
inline F32x16 div(F32x16 a, F32x16 b) {
  BW_EACH a.v[i] /= b.v[i];
  return a;
}
inline F32x16 round_even(F32x16 a) {
  BW_EACH a.v[i] = std::nearbyint(a.v[i]);
  return a;
}
inline I32x16 count_greater(I32x16 count, F32x16 a, F32x16 b) {
  BW_EACH count.v[i] += a.v[i] > b.v[i];
  return count;
}
template <int distance>
inline F32x16 swap_lanes(F32x16 a) {
  F32x16 r;
  BW_EACH r.v[i] = a.v[i ^ distance];
  return r;
}
inline F32x16 absolute(F32x16 a) {
  BW_EACH a.v[i] = std::fabs(a.v[i]);
  return a;
}
inline F32x16 to_f32(I32x16 a) {
  F32x16 r;
  BW_EACH r.v[i] = static_cast<float>(a.v[i]);
  return r;
}
inline I32x16 to_i32(F32x16 a) {
  I32x16 r;
  // What x86 gives for NaN and for values out of range.
  BW_EACH r.v[i] = std::fabs(a.v[i]) < 2147483648.0f ? static_cast<int32_t>(std::nearbyint(a.v[i])) : INT32_MIN;
  return r;
}
inline float sum(F32x16 a) {
  float total = 0;
  BW_EACH total += a.v[i];
  return total;
}
inline float largest(F32x16 a) {
  float most = a.v[0];
  BW_EACH most = a.v[i] > most ? a.v[i] : most;
  return most;
}
inline int32_t sum(I32x16 a) {
  uint32_t total = 0;
  BW_EACH total += bits_of(a.v[i]);
  return static_cast<int32_t>(total);
}
inline void store_low_bytes(int8_t* p, I32x16 a) { BW_EACH p[i] = static_cast<int8_t>(a.v[i]); }
inline F32x16 lookup16(F32x16 table, I32x16 index) {
  F32x16 r;
  BW_EACH r.v[i] = table.v[index.v[i] & 15];
  return r;
}
inline F32x16 gather(const float* table, I32x16 index) {
  F32x16 r;
  BW_EACH r.v[i] = table[index.v[i]];
  return r;
}
inline void prefetch(const void*) {}
inline void prefetch_second(const void*) {}

#undef BW_EACH
#undef BW_EACH_BYTE

}  // namespace bw::BW_ISA
