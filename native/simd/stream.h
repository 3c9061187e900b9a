// Stores that go past the cache, for results that are larger than it: a plain store would read each line first.
#pragma once

#include "simd/simd.h"

namespace bw::BW_ISA {

// Bytes of a result from which its lines are not worth keeping.
constexpr int64_t kStreamFrom = int64_t{32} << 20;

// Whether a result of that many bytes is streamed: also, all of its vectors must be aligned to a line.
inline bool streams(const void* result, int64_t bytes) {
  return bytes >= kStreamFrom && reinterpret_cast<uintptr_t>(result) % 64 == 0;
}

// stream, stream_bytes:      store 64 bytes at a multiple of 64.
// stream_f16, stream_bf16:   store 32 bytes at a multiple of 32; the other half of the line follows.
// end_streams:               before another thread may read them.
// prefetch_far:              into the second-level cache.
#if BW_IS == BW_IS_avx512

inline void stream(float* p, F32x16 a) { _mm512_stream_ps(p, a.v); }
inline void stream_bytes(uint8_t* p, U8x64 a) { _mm512_stream_si512(reinterpret_cast<__m512i*>(p), a.v); }
inline void end_streams() { _mm_sfence(); }

#elif BW_IS == BW_IS_avx2

inline void stream(float* p, F32x16 x) {
  _mm256_stream_ps(p, x.a);
  _mm256_stream_ps(p + 8, x.b);
}
inline void stream_bytes(uint8_t* p, U8x64 x) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p + 32), x.b);
}
inline void end_streams() { _mm_sfence(); }

#else

inline void stream_f16(uint16_t* p, F32x16 a) { store_f16(p, a); }
inline void stream_bf16(uint16_t* p, F32x16 a) { store_bf16(p, a); }
inline void prefetch_far(const void* p) { prefetch(p); }
inline void stream(float* p, F32x16 a) { store(p, a); }
inline void stream_bytes(uint8_t* p, U8x64 a) { store_bytes(p, a); }
inline void end_streams() {}

#endif

#if BW_IS == BW_IS_avx512 || BW_IS == BW_IS_avx2

inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
inline void stream_half(uint16_t* p, const uint16_t* half) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm256_load_si256(reinterpret_cast<const __m256i*>(half)));
}
inline void stream_f16(uint16_t* p, F32x16 x) {
  alignas(32) uint16_t half[16];
  store_f16(half, x);
  stream_half(p, half);
}
inline void stream_bf16(uint16_t* p, F32x16 x) {
  alignas(32) uint16_t half[16];
  store_bf16(half, x);
  stream_half(p, half);
}

#endif

}  // namespace bw::BW_ISA
