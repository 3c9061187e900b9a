// Lookups in tables of 256 bytes, and pairs of short runs of halves.
#pragma once

#include "simd/simd.h"

namespace bw::BW_ISA {

// lookup256(table, i): table[i] for every byte of i.
// load_pair_f16(a, b): 8 halves from each.

#if BW_IS == BW_IS_avx512

inline U8x64 lookup256(const uint8_t* table, U8x64 index) {
  const __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(table), index.v, _mm512_loadu_si512(table + 64));
  const __m512i high =
      _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), index.v, _mm512_loadu_si512(table + 192));
  return {_mm512_mask_blend_epi8(_mm512_movepi8_mask(index.v), low, high)};
}
inline F32x16 load_pair_f16(const uint16_t* a, const uint16_t* b) {
  const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a));
  const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b));
  return {_mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1))};
}

#else

inline U8x64 lookup256(const uint8_t* table, U8x64 index) {
  alignas(64) uint8_t v[64];
  store_bytes(v, index);
  for (int i = 0; i < 64; ++i) v[i] = table[v[i]];
  return load_bytes(v);
}
#if BW_IS == BW_IS_avx2
inline F32x16 load_pair_f16(const uint16_t* a, const uint16_t* b) {
  return {_mm256_cvtph_ps(load8(a)), _mm256_cvtph_ps(load8(b))};
}
#else
inline F32x16 load_pair_f16(const uint16_t* a, const uint16_t* b) {
  alignas(64) uint16_t both[16];
  std::memcpy(both, a, 16);
  std::memcpy(both + 8, b, 16);
  return load_f16(both);
}
#endif

#endif

}  // namespace bw::BW_ISA
