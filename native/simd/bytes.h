// Bytes: lookups in tables of 16, arithmetic, counts of bits. Beside simd.h, for the kernels that look up or count.
#pragma once

#include "simd/simd.h"

namespace bw::BW_ISA {

// repeat16(p):            the 16 bytes at p, four times.
// lookup_bytes(t, i):     per run of 16 bytes, t[i]; every i below 16.
// dot_vectors(acc, w, x): acc[r] += sum over j of w[r][j] * x[r][j]; w up to 127, x signed.
// add_bytes, drop_bytes, min_bytes: sum modulo 256, difference that stops at 0, the smaller.
// bits_xor, splat_word, count_bits: per 32-bit lane.
// add_pairs, odd_bytes:   16-bit sums; bytes 1, 3, ... as 16-bit numbers.
// sum_fours(a, b, c, d):  lane 4 L + i is the sum of lanes 4 L .. 4 L + 3 of the i-th argument.
// transpose_fours:        exchanges lane 4 L + j of vector i with lane 4 L + i of vector j.

#if BW_IS == BW_IS_avx512

inline U8x64 repeat16(const void* p) {
  return {_mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
inline U8x64 lookup_bytes(U8x64 table, U8x64 index) { return {_mm512_shuffle_epi8(table.v, index.v)}; }
inline I32x16 dot_vectors(I32x16 acc, U8x64 w, U8x64 x) { return {_mm512_dpbusd_epi32(acc.v, w.v, x.v)}; }
inline U8x64 add_bytes(U8x64 a, U8x64 b) { return {_mm512_add_epi8(a.v, b.v)}; }
inline U8x64 drop_bytes(U8x64 a, U8x64 b) { return {_mm512_subs_epu8(a.v, b.v)}; }
inline U8x64 min_bytes(U8x64 a, U8x64 b) { return {_mm512_min_epu8(a.v, b.v)}; }
inline U8x64 bits_xor(U8x64 a, U8x64 b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline U8x64 splat_word(uint32_t value) { return {_mm512_set1_epi32(static_cast<int>(value))}; }
inline I32x16 count_bits(U8x64 a) { return {_mm512_popcnt_epi32(a.v)}; }
inline U8x64 add_pairs(U8x64 a, U8x64 b) { return {_mm512_add_epi16(a.v, b.v)}; }
inline U8x64 odd_bytes(U8x64 a) { return {_mm512_srli_epi16(a.v, 8)}; }
inline I32x16 sum_fours(I32x16 a, I32x16 b, I32x16 c, I32x16 d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a.v, b.v), _mm512_unpackhi_epi32(a.v, b.v));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c.v, d.v), _mm512_unpackhi_epi32(c.v, d.v));
  return {_mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))};
}
inline void transpose_fours(U8x64& a, U8x64& b, U8x64& c, U8x64& d) {
  const __m512i ab = _mm512_unpacklo_epi32(a.v, b.v), cd = _mm512_unpacklo_epi32(c.v, d.v);
  const __m512i ba = _mm512_unpackhi_epi32(a.v, b.v), dc = _mm512_unpackhi_epi32(c.v, d.v);
  a.v = _mm512_unpacklo_epi64(ab, cd);
  b.v = _mm512_unpackhi_epi64(ab, cd);
  c.v = _mm512_unpacklo_epi64(ba, dc);
  d.v = _mm512_unpackhi_epi64(ba, dc);
}

#elif BW_IS == BW_IS_avx2

inline U8x64 repeat16(const void* p) {
  const __m256i v = _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  return {v, v};
}
inline U8x64 lookup_bytes(U8x64 table, U8x64 index) {
  return {_mm256_shuffle_epi8(table.a, index.a), _mm256_shuffle_epi8(table.b, index.b)};
}
inline I32x16 dot_vectors(I32x16 acc, U8x64 w, U8x64 x) {
  return {_mm256_add_epi32(acc.a, dot_small(w.a, x.a)), _mm256_add_epi32(acc.b, dot_small(w.b, x.b))};
}
inline U8x64 add_bytes(U8x64 a, U8x64 b) { return {_mm256_add_epi8(a.a, b.a), _mm256_add_epi8(a.b, b.b)}; }
inline U8x64 drop_bytes(U8x64 a, U8x64 b) { return {_mm256_subs_epu8(a.a, b.a), _mm256_subs_epu8(a.b, b.b)}; }
inline U8x64 min_bytes(U8x64 a, U8x64 b) { return {_mm256_min_epu8(a.a, b.a), _mm256_min_epu8(a.b, b.b)}; }
inline U8x64 bits_xor(U8x64 a, U8x64 b) { return {_mm256_xor_si256(a.a, b.a), _mm256_xor_si256(a.b, b.b)}; }
inline U8x64 add_pairs(U8x64 a, U8x64 b) { return {_mm256_add_epi16(a.a, b.a), _mm256_add_epi16(a.b, b.b)}; }
inline U8x64 odd_bytes(U8x64 a) { return {_mm256_srli_epi16(a.a, 8), _mm256_srli_epi16(a.b, 8)}; }
inline U8x64 splat_word(uint32_t value) {
  const __m256i v = _mm256_set1_epi32(static_cast<int>(value));
  return {v, v};
}
inline __m256i count_half(__m256i v) {
  const __m256i counts = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i bytes = _mm256_add_epi8(_mm256_shuffle_epi8(counts, _mm256_and_si256(v, low)),
                                        _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(v, 4), low)));
  return dot_small(bytes, _mm256_set1_epi8(1));
}
inline I32x16 count_bits(U8x64 a) { return {count_half(a.a), count_half(a.b)}; }
inline __m256i sum_half(__m256i a, __m256i b, __m256i c, __m256i d) {
  return _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
}
inline I32x16 sum_fours(I32x16 a, I32x16 b, I32x16 c, I32x16 d) {
  return {sum_half(a.a, b.a, c.a, d.a), sum_half(a.b, b.b, c.b, d.b)};
}
inline void transpose_half(__m256i& a, __m256i& b, __m256i& c, __m256i& d) {
  const __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
  const __m256i ba = _mm256_unpackhi_epi32(a, b), dc = _mm256_unpackhi_epi32(c, d);
  a = _mm256_unpacklo_epi64(ab, cd);
  b = _mm256_unpackhi_epi64(ab, cd);
  c = _mm256_unpacklo_epi64(ba, dc);
  d = _mm256_unpackhi_epi64(ba, dc);
}
inline void transpose_fours(U8x64& a, U8x64& b, U8x64& c, U8x64& d) {
  transpose_half(a.a, b.a, c.a, d.a);
  transpose_half(a.b, b.b, c.b, d.b);
}

#else  // plain loops over memory: any instruction set that has the vectors of simd.h

template <class Body>
inline U8x64 each_byte(U8x64 a, U8x64 b, Body&& body) {
  alignas(64) uint8_t x[64], y[64];
  store_bytes(x, a);
  store_bytes(y, b);
  for (int i = 0; i < 64; ++i) x[i] = static_cast<uint8_t>(body(i, x[i], y));
  return load_bytes(x);
}
inline I32x16 load_words(const uint8_t* bytes) {
  const U8x64 v = load_bytes(bytes);
  return add(add(byte_of_lane<0>(v), shift_left<8>(byte_of_lane<1>(v))),
             add(shift_left<16>(byte_of_lane<2>(v)), shift_left<24>(byte_of_lane<3>(v))));
}
inline U8x64 repeat16(const void* p) {
  alignas(64) uint8_t v[64];
  for (int i = 0; i < 4; ++i) std::memcpy(v + 16 * i, p, 16);
  return load_bytes(v);
}
inline U8x64 lookup_bytes(U8x64 table, U8x64 index) {
  return each_byte(index, table, [](int i, uint8_t at, const uint8_t* t) { return t[(i & 48) + (at & 15)]; });
}
inline I32x16 dot_vectors(I32x16 acc, U8x64 w, U8x64 x) {
  alignas(64) uint8_t a[64], b[64];
  alignas(64) int32_t sums[16] = {};
  store_bytes(a, w);
  store_bytes(b, x);
  for (int i = 0; i < 64; ++i) sums[i / 4] += a[i] * static_cast<int8_t>(b[i]);
  return add(acc, load_words(reinterpret_cast<const uint8_t*>(sums)));
}
inline U8x64 add_bytes(U8x64 a, U8x64 b) {
  return each_byte(a, b, [](int i, uint8_t x, const uint8_t* y) { return x + y[i]; });
}
inline U8x64 drop_bytes(U8x64 a, U8x64 b) {
  return each_byte(a, b, [](int i, uint8_t x, const uint8_t* y) { return x > y[i] ? x - y[i] : 0; });
}
inline U8x64 min_bytes(U8x64 a, U8x64 b) {
  return each_byte(a, b, [](int i, uint8_t x, const uint8_t* y) { return x < y[i] ? x : y[i]; });
}
inline U8x64 bits_xor(U8x64 a, U8x64 b) {
  return each_byte(a, b, [](int i, uint8_t x, const uint8_t* y) { return x ^ y[i]; });
}
inline U8x64 add_pairs(U8x64 a, U8x64 b) {
  alignas(64) uint16_t x[32], y[32];
  store_bytes(reinterpret_cast<uint8_t*>(x), a);
  store_bytes(reinterpret_cast<uint8_t*>(y), b);
  for (int i = 0; i < 32; ++i) x[i] = static_cast<uint16_t>(x[i] + y[i]);
  return load_bytes(reinterpret_cast<const uint8_t*>(x));
}
inline U8x64 odd_bytes(U8x64 a) {
  return each_byte(a, a, [](int i, uint8_t, const uint8_t* x) { return i & 1 ? 0 : x[i + 1]; });
}
inline U8x64 splat_word(uint32_t value) {
  alignas(64) uint32_t v[16];
  for (uint32_t& word : v) word = value;
  return load_bytes(reinterpret_cast<const uint8_t*>(v));
}
inline I32x16 count_bits(U8x64 a) {
  alignas(64) uint32_t v[16];
  store_bytes(reinterpret_cast<uint8_t*>(v), a);
  for (uint32_t& word : v) word = static_cast<uint32_t>(__builtin_popcount(word));
  return load_words(reinterpret_cast<const uint8_t*>(v));
}
inline void store_words(uint32_t* p, I32x16 a) {
  for (int byte = 0; byte < 4; ++byte) {
    int8_t low[16];
    store_low_bytes(low, byte == 0   ? a
                         : byte == 1 ? shift_right<8>(a)
                         : byte == 2 ? shift_right<16>(a)
                                     : shift_right<24>(a));
    for (int i = 0; i < 16; ++i)
      p[i] = (byte ? p[i] : 0) | static_cast<uint32_t>(static_cast<uint8_t>(low[i])) << (8 * byte);
  }
}
inline I32x16 sum_fours(I32x16 a, I32x16 b, I32x16 c, I32x16 d) {
  alignas(64) uint32_t v[4][16], sums[16];
  store_words(v[0], a), store_words(v[1], b), store_words(v[2], c), store_words(v[3], d);
  for (int i = 0; i < 16; ++i) {
    const uint32_t* run = v[i % 4] + i / 4 * 4;
    sums[i] = run[0] + run[1] + run[2] + run[3];
  }
  return load_words(reinterpret_cast<const uint8_t*>(sums));
}
inline void transpose_fours(U8x64& a, U8x64& b, U8x64& c, U8x64& d) {
  alignas(64) uint32_t v[4][16], t[4][16];
  U8x64* all[4] = {&a, &b, &c, &d};
  for (int i = 0; i < 4; ++i) store_bytes(reinterpret_cast<uint8_t*>(v[i]), *all[i]);
  for (int i = 0; i < 4; ++i)
    for (int r = 0; r < 16; ++r) t[i][r] = v[r % 4][r / 4 * 4 + i];
  for (int i = 0; i < 4; ++i) *all[i] = load_bytes(reinterpret_cast<const uint8_t*>(t[i]));
}

#endif

}  // namespace bw::BW_ISA
