// 32-bit words in lanes: shifts across two words, bits, comparisons as masks. Beside simd.h, for trellis codes.
#pragma once

#include "simd/bytes.h"
#include "simd/simd.h"

namespace bw::BW_ISA {

// load_word_lanes(p):    16 words.
// bits_and, bits_xor:    of words.
// shift_down<n>(a):      without the sign.
// window<n>(high, low):  the 32 bits of high:low that end n bits above the lowest; n from 0 to 31.
// as_bytes, as_floats:   the same bits.
// less_lanes(a, b):      bit i says whether a[i] < b[i].
// repeat_lanes<k>(p):    p[0], ..., each 2^k times; k from 0 to 4.

#if BW_IS == BW_IS_avx512

inline I32x16 load_word_lanes(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
inline I32x16 bits_and(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I32x16 bits_xor(I32x16 a, I32x16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int n>
inline I32x16 shift_down(I32x16 a) {
  return {_mm512_srli_epi32(a.v, n)};
}
template <int n>
inline I32x16 window(I32x16 high, I32x16 low) {
  if constexpr (n == 0) return low;
  return {_mm512_or_si512(_mm512_slli_epi32(high.v, 32 - n), _mm512_srli_epi32(low.v, n))};
}
inline U8x64 as_bytes(I32x16 a) { return {a.v}; }
inline F32x16 as_floats(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
using LaneMask = __mmask16;
inline LaneMask less_lanes(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
template <int k>
inline F32x16 repeat_lanes(const float* p) {
  if constexpr (k == 0) return load(p);
  if constexpr (k == 1) {
    const __m512i place = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return {_mm512_permutexvar_ps(place, _mm512_castps256_ps512(_mm256_loadu_ps(p)))};
  }
  if constexpr (k == 2) {
    const __m512i place = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return {_mm512_permutexvar_ps(place, _mm512_castps128_ps512(_mm_loadu_ps(p)))};
  }
  if constexpr (k == 3) return {_mm512_mask_blend_ps(0xff00, _mm512_set1_ps(p[0]), _mm512_set1_ps(p[1]))};
  return splat(*p);
}

#elif BW_IS == BW_IS_avx2

inline I32x16 load_word_lanes(const uint32_t* p) { return {loadu(p), loadu(p + 8)}; }
inline I32x16 bits_and(I32x16 x, I32x16 y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
inline I32x16 bits_xor(I32x16 x, I32x16 y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
template <int n>
inline I32x16 shift_down(I32x16 x) {
  return {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)};
}
template <int n>
inline I32x16 window(I32x16 high, I32x16 low) {
  if constexpr (n == 0) return low;
  const auto half = [](__m256i h, __m256i l) {
    return _mm256_or_si256(_mm256_slli_epi32(h, 32 - n), _mm256_srli_epi32(l, n));
  };
  return {half(high.a, low.a), half(high.b, low.b)};
}
inline U8x64 as_bytes(I32x16 x) { return {x.a, x.b}; }
inline F32x16 as_floats(I32x16 x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
using LaneMask = uint32_t;
inline LaneMask less_lanes(F32x16 x, F32x16 y) {
  const auto half = [](__m256 p, __m256 q) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(p, q, _CMP_LT_OQ)));
  };
  return half(x.a, y.a) | half(x.b, y.b) << 8;
}
template <int k>
inline F32x16 repeat_lanes(const float* p) {
  if constexpr (k == 0) return load(p);
  if constexpr (k == 1) {
    const __m256 v = _mm256_loadu_ps(p);
    return {_mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)),
            _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7))};
  }
  if constexpr (k == 2) {
    const __m256 v = _mm256_castps128_ps256(_mm_loadu_ps(p));
    return {_mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1)),
            _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3))};
  }
  if constexpr (k == 3) return {_mm256_set1_ps(p[0]), _mm256_set1_ps(p[1])};
  return splat(*p);
}

#else  // plain loops over memory

inline I32x16 load_word_lanes(const uint32_t* p) { return load_words(reinterpret_cast<const uint8_t*>(p)); }
template <class Body>
inline I32x16 each_word(I32x16 a, I32x16 b, Body&& body) {
  alignas(64) uint32_t x[16], y[16];
  store_words(x, a);
  store_words(y, b);
  for (int i = 0; i < 16; ++i) x[i] = body(x[i], y[i]);
  return load_word_lanes(x);
}
inline I32x16 bits_and(I32x16 a, I32x16 b) {
  return each_word(a, b, [](uint32_t x, uint32_t y) { return x & y; });
}
inline I32x16 bits_xor(I32x16 a, I32x16 b) {
  return each_word(a, b, [](uint32_t x, uint32_t y) { return x ^ y; });
}
template <int n>
inline I32x16 shift_down(I32x16 a) {
  return each_word(a, a, [](uint32_t x, uint32_t) { return x >> n; });
}
template <int n>
inline I32x16 window(I32x16 high, I32x16 low) {
  if constexpr (n == 0) return low;
  return each_word(high, low, [](uint32_t h, uint32_t l) { return h << (32 - n) | l >> n; });
}
inline U8x64 as_bytes(I32x16 a) {
  alignas(64) uint32_t x[16];
  store_words(x, a);
  return load_bytes(reinterpret_cast<const uint8_t*>(x));
}
inline F32x16 as_floats(I32x16 a) {
  alignas(64) uint32_t x[16];
  alignas(64) float y[16];
  store_words(x, a);
  std::memcpy(y, x, sizeof(y));
  return load(y);
}
using LaneMask = uint32_t;
inline LaneMask less_lanes(F32x16 a, F32x16 b) {
  alignas(64) float x[16], y[16];
  store(x, a);
  store(y, b);
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<uint32_t>(x[i] < y[i]) << i;
  return mask;
}
template <int k>
inline F32x16 repeat_lanes(const float* p) {
  alignas(64) float x[16];
  for (int i = 0; i < 16; ++i) x[i] = p[i >> k];
  return load(x);
}

#endif

}  // namespace bw::BW_ISA
