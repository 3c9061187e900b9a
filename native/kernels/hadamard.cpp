// The fast Walsh-Hadamard transform of blocks that stay in the cache.
//
// Stages go from the widest butterfly to the narrowest: several at a time across vectors, the last four within them.
// Every stage is one addition or subtraction per value, so all instruction sets give the same bits.
#include "kernels/hadamard.h"

#include "core/pool.h"
#include "core/scratch.h"
#include "kernels/planes.h"
#include "simd/stream.h"

namespace bw::BW_ISA {
namespace {

constexpr int64_t kLanes = 16;
// Channels that a thread takes at once.
constexpr int64_t kChunk = int64_t{1} << 15;

// Vectors whose butterflies run in registers at once.
#if BW_IS == BW_IS_avx512
constexpr int kRadix = 16;
#else
constexpr int kRadix = 4;
#endif

template <Float type>
inline __attribute__((always_inline)) F32x16 get_floats(const void* x, int64_t index) {
  if constexpr (type == Float::f32) return load(static_cast<const float*>(x) + index);
  const uint16_t* half = static_cast<const uint16_t*>(x) + index;
  return type == Float::f16 ? load_f16(half) : load_bf16(half);
}

template <Float type, bool past>
inline __attribute__((always_inline)) void put_floats(void* y, int64_t index, F32x16 value) {
  if constexpr (type == Float::f32) {
    float* place = static_cast<float*>(y) + index;
    return past ? stream(place, value) : store(place, value);
  }
  uint16_t* half = static_cast<uint16_t*>(y) + index;
  if constexpr (type == Float::f16) return past ? stream_f16(half, value) : store_f16(half, value);
  if constexpr (type == Float::bf16) return past ? stream_bf16(half, value) : store_bf16(half, value);
}

// As unroll() of planes.h, but never a call: the vectors of a group must stay in registers.
template <class Body, int... i>
inline __attribute__((always_inline)) void each(std::integer_sequence<int, i...>, const Body& body) {
  (body(std::integral_constant<int, i>{}), ...);
}
template <int n, class Body>
inline __attribute__((always_inline)) void each(const Body& body) {
  each(std::make_integer_sequence<int, n>{}, body);
}

// The stages of a group of vectors from the widest on; everything stays in registers.
template <int half, int radix>
inline __attribute__((always_inline)) void butterflies(F32x16 (&v)[radix]) {
  if constexpr (half > 0) {
    each<radix / 2>([&](auto pair) __attribute__((always_inline)) {
      constexpr int i = pair / half * 2 * half + pair % half;
      const F32x16 a = v[i], b = v[i + half];
      v[i] = add(a, b);
      v[i + half] = sub(a, b);
    });
    butterflies<half / 2>(v);
  }
}

// Stages of `count` values in groups of `radix` vectors that stand group / radix apart: get(place) gives a vector,
// put(place, vector) takes it.
template <int radix, class Get, class Put>
inline __attribute__((always_inline)) void stages(int64_t count, int64_t group, const Get& get, const Put& put) {
  const int64_t step = group / radix;
  for (int64_t start = 0; start < count; start += group) {
    for (int64_t k = start; k < start + step; k += kLanes) {
      F32x16 v[radix];
      each<radix>([&](auto i) __attribute__((always_inline)) { v[i] = get(k + i * step); });
      butterflies<radix / 2>(v);
      each<radix>([&](auto i) __attribute__((always_inline)) { put(k + i * step, v[i]); });
    }
  }
}

// The four stages within a vector: x + partner where a lane's bit is clear, partner - x where it is set.
struct Narrow {
  F32x16 sign[4];

  Narrow() {
    alignas(64) float values[kLanes];
    for (int stage = 0; stage < 4; ++stage) {
      for (int lane = 0; lane < kLanes; ++lane) values[lane] = lane >> stage & 1 ? -1.0f : 1.0f;
      sign[stage] = load(values);
    }
  }

  __attribute__((always_inline)) F32x16 operator()(F32x16 x) const {
    x = fma(x, sign[3], swap_lanes<8>(x));
    x = fma(x, sign[2], swap_lanes<4>(x));
    x = fma(x, sign[1], swap_lanes<2>(x));
    return fma(x, sign[0], swap_lanes<1>(x));
  }
};

// y[base][power] = factor x, four rows of the result at a time.
void mix_rows(const Hadamard& t, const float* x, float* y) {
  constexpr int kTogether = 4;  // base is a multiple of 4
  for (int64_t first = 0; first < t.base; first += kTogether) {
    for (int64_t i = 0; i < t.power; i += kLanes) {
      F32x16 sums[kTogether];
      unroll<kTogether>([&](auto r) { sums[r] = zero_f32(); });
      for (int64_t b = 0; b < t.base; ++b) {
        const F32x16 here = load(x + b * t.power + i);
        unroll<kTogether>([&](auto r) { sums[r] = fma(splat(t.factor[(first + r) * t.base + b]), here, sums[r]); });
      }
      unroll<kTogether>([&](auto r) { store(y + (first + r) * t.power + i, sums[r]); });
    }
  }
}

// The stages of groups of `group` values, the last wide ones, for a radix of at most kRadix.
template <int radix, class Get, class Put>
inline __attribute__((always_inline)) void last_stages(int64_t count, int64_t group, const Get& get, const Put& put) {
  if (group == radix * kLanes) return stages<radix>(count, group, get, put);
  if constexpr (radix > 1) last_stages<radix / 2>(count, group, get, put);
}

// The block that starts at channel `start` of the whole input. Between reading the input and writing the result it is
// in `memory`; the input of the next block is fetched meanwhile.
template <Float type, bool past>
void transform_block(const Hadamard& t, const Narrow& narrow, const void* x, void* y, int64_t start, int64_t next,
                     float* memory) {
  constexpr int64_t kBytes = type == Float::f32 ? 4 : 2;
  const int64_t size = t.size(), channel = start % t.dim;
  const F32x16 scale = splat(t.scale);
  const auto input = [&](int64_t k) __attribute__((always_inline)) {
    const F32x16 value = get_floats<type>(x, start + k);
    return t.before ? mul(value, load(t.before + channel + k)) : value;
  };
  const auto output = [&](int64_t k, F32x16 value) __attribute__((always_inline)) {
    value = mul(narrow(value), scale);
    if (t.after) value = mul(value, load(t.after + channel + k));
    put_floats<type, past>(y, start + k, value);
  };
  const auto fetch = [&](int64_t k) __attribute__((always_inline)) {
    prefetch_far(static_cast<const char*>(x) + (next + k) * kBytes);
  };
  int64_t group = t.power;
  if (t.base == 1 && group <= kRadix * kLanes) return last_stages<kRadix>(size, group, input, output);
  float* turned = memory;
  const auto read = [&](int64_t k) __attribute__((always_inline)) { return load(turned + k); };
  const auto write = [&](int64_t k, F32x16 value) __attribute__((always_inline)) { store(turned + k, value); };
  if (t.base == 1) {
    stages<kRadix>(size, group, input, write);
    group /= kRadix;
  } else {
    for (int64_t k = 0; k < size; k += kLanes) write(k, input(k));
    mix_rows(t, memory, memory + size);
    turned = memory + size;
  }
  for (; group > kRadix * kLanes; group /= kRadix) stages<kRadix>(size, group, read, write);
  last_stages<kRadix>(size, group, [&](int64_t k) __attribute__((always_inline)) { return fetch(k), read(k); }, output);
}

template <Float type, bool past>
void transform_all(const Hadamard& t, const void* x, void* y, int threads) {
  const int64_t size = t.size(), blocks = t.rows * (t.dim / size);
  const int64_t together = size < kChunk ? kChunk / size : 1;
  parallel_for(threads, (blocks + together - 1) / together, [&](int64_t chunk, int) {
    thread_local Scratch<float> scratch;
    float* memory = scratch.get(static_cast<size_t>(size) * (t.base > 1 ? 2 : 1));
    const Narrow narrow;
    for (int64_t b = chunk * together; b < blocks && b < (chunk + 1) * together; ++b)
      transform_block<type, past>(t, narrow, x, y, b * size, (b + 1 < blocks ? b + 1 : b) * size, memory);
    if (past) end_streams();
  });
}

template <Float type>
void transform(const Hadamard& t, const void* x, void* y, int threads) {
  // Lines are filled by whole blocks.
  const bool past = t.size() % 32 == 0 && streams(y, t.rows * t.dim * (type == Float::f32 ? 4 : 2));
  past ? transform_all<type, true>(t, x, y, threads) : transform_all<type, false>(t, x, y, threads);
}

}  // namespace

void hadamard(const Hadamard& t, const void* x, void* y, int threads) {
  switch (t.type) {
    case Float::f32: return transform<Float::f32>(t, x, y, threads);
    case Float::f16: return transform<Float::f16>(t, x, y, threads);
    case Float::bf16: return transform<Float::bf16>(t, x, y, threads);
  }
}

}  // namespace bw::BW_ISA
