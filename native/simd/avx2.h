// AVX2 with FMA and F16C: every x86 server and desktop since 2013 (Haswell, Zen).
#pragma once

#include <immintrin.h>

#include <cstring>

namespace bw::BW_ISA {

struct U8x64 {
  __m256i a, b;
};
struct I32x16 {
  __m256i a, b;
};
struct F32x16 {
  __m256 a, b;
};

// maddubs saturates above 128, so fields are shifted down first.
constexpr bool kFieldsInPlace = false;
// Whether loops have one form only, instead of one for each number of rows and tiles that pays.
constexpr bool kLean = false;

inline __m256i loadu(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline U8x64 load_bytes(const uint8_t* p) { return {loadu(p), loadu(p + 32)}; }
inline void store_bytes(uint8_t* p, U8x64 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), v.b);
}
inline U8x64 splat_byte(uint8_t value) {
  const __m256i v = _mm256_set1_epi8(static_cast<char>(value));
  return {v, v};
}
inline U8x64 bits_and(U8x64 x, U8x64 mask) { return {_mm256_and_si256(x.a, mask.a), _mm256_and_si256(x.b, mask.b)}; }
inline U8x64 bits_or(U8x64 x, U8x64 y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
template <int n>
inline U8x64 shift_right(U8x64 x, U8x64 mask) {
  if constexpr (n == 0) return bits_and(x, mask);
  return bits_and({_mm256_srli_epi16(x.a, n), _mm256_srli_epi16(x.b, n)}, mask);
}
template <int n>
inline U8x64 shift_left_bytes(U8x64 x) {
  if constexpr (n == 0) return x;
  return {_mm256_slli_epi16(x.a, n), _mm256_slli_epi16(x.b, n)};
}

inline I32x16 zero_i32() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I32x16 splat_i32(int32_t value) {
  const __m256i v = _mm256_set1_epi32(value);
  return {v, v};
}
inline I32x16 add(I32x16 x, I32x16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline I32x16 sub(I32x16 x, I32x16 y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
inline I32x16 mul(I32x16 x, I32x16 y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
template <int n>
inline I32x16 shift_right(I32x16 x) {
  return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)};
}
template <int n>
inline I32x16 shift_left(I32x16 x) {
  return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)};
}
inline I32x16 load_u8_as_i32(const uint8_t* p) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
}
template <int j>
inline I32x16 byte_of_lane(U8x64 x) {
  const __m256i low = _mm256_set1_epi32(255);
  return {_mm256_and_si256(_mm256_srli_epi32(x.a, 8 * j), low), _mm256_and_si256(_mm256_srli_epi32(x.b, 8 * j), low)};
}

inline __m256i dot_small(__m256i w, __m256i x) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
}
struct X4 {
  __m256i v;
};
inline X4 splat_four(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return {_mm256_set1_epi32(four)};
}
inline U8x64 held(U8x64 x) {
  asm("" : "+x"(x.a), "+x"(x.b));
  return x;
}
template <int most = 255>
inline I32x16 dot(I32x16 acc, U8x64 w, X4 x) {
  const __m256i x4 = x.v;
  if constexpr (most <= 128) {
    return {_mm256_add_epi32(acc.a, dot_small(w.a, x4)), _mm256_add_epi32(acc.b, dot_small(w.b, x4))};
  }
  // Two halves of a byte, because a product of two whole bytes and their sum leave 16 bits.
  const __m256i low = _mm256_set1_epi8(15);
  const auto whole = [&](__m256i v) {
    const __m256i upper = dot_small(_mm256_and_si256(_mm256_srli_epi16(v, 4), low), x4);
    return _mm256_add_epi32(dot_small(_mm256_and_si256(v, low), x4), _mm256_slli_epi32(upper, 4));
  };
  return {_mm256_add_epi32(acc.a, whole(w.a)), _mm256_add_epi32(acc.b, whole(w.b))};
}
template <int most = 255>
inline I32x16 dot(I32x16 acc, U8x64 w, const int8_t* x) {
  return dot<most>(acc, w, splat_four(x));
}

inline F32x16 zero_f32() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F32x16 splat(float value) {
  const __m256 v = _mm256_set1_ps(value);
  return {v, v};
}
inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F32x16 x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline __m128i load8(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline F32x16 load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(load8(p)), _mm256_cvtph_ps(load8(p + 8))}; }
inline F32x16 load_bf16(const uint16_t* p) {
  const auto half = [](__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); };
  return {half(load8(p)), half(load8(p + 8))};
}
inline void store_f16(uint16_t* p, F32x16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_bf16(uint16_t* p, F32x16 x) {
  float values[16];
  store(values, x);
  for (int lane = 0; lane < 16; ++lane) p[lane] = to_bf16(values[lane]);
}
inline F32x16 add(F32x16 x, F32x16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F32x16 sub(F32x16 x, F32x16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F32x16 mul(F32x16 x, F32x16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F32x16 fma(F32x16 x, F32x16 y, F32x16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline F32x16 max(F32x16 x, F32x16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F32x16 min(F32x16 x, F32x16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F32x16 div(F32x16 x, F32x16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F32x16 round_even(F32x16 x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
inline I32x16 count_greater(I32x16 count, F32x16 x, F32x16 y) {
  // A true comparison is -1.
  const auto greater = [](__m256 p, __m256 q) { return _mm256_castps_si256(_mm256_cmp_ps(p, q, _CMP_GT_OQ)); };
  return {_mm256_sub_epi32(count.a, greater(x.a, y.a)), _mm256_sub_epi32(count.b, greater(x.b, y.b))};
}
template <int distance>
inline F32x16 swap_lanes(F32x16 x) {
  if constexpr (distance == 1) return {_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)};
  if constexpr (distance == 2) return {_mm256_permute_ps(x.a, 0x4e), _mm256_permute_ps(x.b, 0x4e)};
  if constexpr (distance == 4) return {_mm256_permute2f128_ps(x.a, x.a, 1), _mm256_permute2f128_ps(x.b, x.b, 1)};
  return {x.b, x.a};
}
inline F32x16 absolute(F32x16 x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline F32x16 to_f32(I32x16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I32x16 to_i32(F32x16 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline float sum(F32x16 x) {
  float values[8];
  _mm256_storeu_ps(values, _mm256_add_ps(x.a, x.b));
  float total = 0;
  for (float value : values) total += value;
  return total;
}
inline float largest(F32x16 x) {
  float values[8];
  _mm256_storeu_ps(values, _mm256_max_ps(x.a, x.b));
  float most = values[0];
  for (float value : values) most = value > most ? value : most;
  return most;
}
inline int32_t sum(I32x16 x) {
  int32_t values[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(values), _mm256_add_epi32(x.a, x.b));
  uint32_t total = 0;  // wraps around
  for (int32_t value : values) total += static_cast<uint32_t>(value);
  return static_cast<int32_t>(total);
}
inline void store_low_bytes(int8_t* p, I32x16 x) {
  int32_t values[16];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(values), x.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + 8), x.b);
  for (int lane = 0; lane < 16; ++lane) p[lane] = static_cast<int8_t>(values[lane]);
}
inline F32x16 gather(const float* table, I32x16 index) {
  return {_mm256_i32gather_ps(table, index.a, 4), _mm256_i32gather_ps(table, index.b, 4)};
}
inline F32x16 lookup16(F32x16 table, I32x16 index) {
  const auto half = [&](__m256i i) {
    const __m256 low = _mm256_permutevar8x32_ps(table.a, i);
    const __m256 high = _mm256_permutevar8x32_ps(table.b, i);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
  };
  return {half(index.a), half(index.b)};
}
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
// Into the second cache.
inline void prefetch_second(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace bw::BW_ISA
