// AVX512 with VNNI, BF16, VBMI and VPOPCNTDQ: Zen 4, Ice Lake and later with BF16 (Cooper Lake, Sapphire Rapids).
#pragma once

#include <immintrin.h>

#include <cstring>

namespace bw::BW_ISA {

struct U8x64 {
  __m512i v;
};
struct I32x16 {
  __m512i v;
};
struct F32x16 {
  __m512 v;
};

// Fields of a byte may be multiplied where they stand: dot() takes all values up to 255.
constexpr bool kFieldsInPlace = true;
// Whether loops have one form only, instead of one for each number of rows and tiles that pays.
constexpr bool kLean = false;

inline U8x64 load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_bytes(uint8_t* p, U8x64 a) { _mm512_storeu_si512(p, a.v); }
inline U8x64 splat_byte(uint8_t value) { return {_mm512_set1_epi8(static_cast<char>(value))}; }
inline U8x64 bits_and(U8x64 a, U8x64 mask) { return {_mm512_and_si512(a.v, mask.v)}; }
inline U8x64 bits_or(U8x64 a, U8x64 b) { return {_mm512_or_si512(a.v, b.v)}; }
// Shift by 0..7 within each byte; the mask that follows drops what came from the neighbour.
template <int n>
inline U8x64 shift_right(U8x64 a, U8x64 mask) {
  return {_mm512_and_si512(n == 0 ? a.v : _mm512_srli_epi16(a.v, n), mask.v)};
}
template <int n>
inline U8x64 shift_left_bytes(U8x64 a) {
  return {n == 0 ? a.v : _mm512_slli_epi16(a.v, n)};
}

inline I32x16 zero_i32() { return {_mm512_setzero_si512()}; }
inline I32x16 splat_i32(int32_t value) { return {_mm512_set1_epi32(value)}; }
inline I32x16 add(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32x16 sub(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I32x16 mul(I32x16 a, I32x16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
template <int n>
inline I32x16 shift_right(I32x16 a) {
  return {_mm512_srai_epi32(a.v, n)};
}
template <int n>
inline I32x16 shift_left(I32x16 a) {
  return {_mm512_slli_epi32(a.v, n)};
}
inline I32x16 load_u8_as_i32(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
// Byte j of every lane.
template <int j>
inline I32x16 byte_of_lane(U8x64 a) {
  return {_mm512_and_si512(j == 0 ? a.v : _mm512_srli_epi32(a.v, 8 * j), _mm512_set1_epi32(255))};
}
// Four activations in every lane.
struct X4 {
  __m512i v;
};
inline X4 splat_four(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return {_mm512_set1_epi32(four)};
}
// acc[r] += sum over j of w[r][j] * x[j]; w up to `most`, x signed.
template <int most = 255>
inline I32x16 dot(I32x16 acc, U8x64 w, X4 x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(w.v), "v"(x.v));
  return acc;
}
template <int most = 255>
inline I32x16 dot(I32x16 acc, U8x64 w, const int8_t* x) {
  return dot<most>(acc, w, splat_four(x));
}
// The vector in a register: without this the compiler reads it from memory again for every field.
inline U8x64 held(U8x64 a) {
  asm("" : "+v"(a.v));
  return a;
}

inline F32x16 zero_f32() { return {_mm512_setzero_ps()}; }
inline F32x16 splat(float value) { return {_mm512_set1_ps(value)}; }
inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
inline F32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F32x16 load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline void store_f16(uint16_t* p, F32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_bf16(uint16_t* p, F32x16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}
inline F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
// a * b + c
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Of a NaN and a number the second argument; so does min.
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
// To the nearest integer, ties to even.
inline F32x16 round_even(F32x16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// One more in every lane where a > b.
inline I32x16 count_greater(I32x16 count, F32x16 a, F32x16 b) {
  const __mmask16 greater = _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ);
  return {_mm512_mask_add_epi32(count.v, greater, count.v, _mm512_set1_epi32(1))};
}
// Lane i becomes lane i ^ distance; distance 1, 2, 4 or 8.
template <int distance>
inline F32x16 swap_lanes(F32x16 a) {
  if constexpr (distance == 1) return {_mm512_permute_ps(a.v, 0xb1)};
  if constexpr (distance == 2) return {_mm512_permute_ps(a.v, 0x4e)};
  if constexpr (distance == 4) return {_mm512_shuffle_f32x4(a.v, a.v, 0xb1)};
  return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)};
}
inline F32x16 absolute(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
inline F32x16 to_f32(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
// Nearest integer, ties to even.
inline I32x16 to_i32(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
inline float sum(F32x16 a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(F32x16 a) { return _mm512_reduce_max_ps(a.v); }
inline int32_t sum(I32x16 a) { return _mm512_reduce_add_epi32(a.v); }
// The lowest byte of every lane.
inline void store_low_bytes(int8_t* p, I32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
// table[index] for a table of 16 floats; only the low 4 bits of an index count.
inline F32x16 lookup16(F32x16 table, I32x16 index) { return {_mm512_permutexvar_ps(index.v, table.v)}; }
inline F32x16 gather(const float* table, I32x16 index) { return {_mm512_i32gather_ps(index.v, table, 4)}; }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
// Into the second cache.
inline void prefetch_second(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace bw::BW_ISA
