// The fast Walsh-Hadamard transform of blocks that stay in the cache.
//
// Stages go from the widest butterfly to the narrowest: several at a time across vectors, the last four within them.
// Every stage is one addition or subtraction per value, so all instruction sets give the same bits.
#include "kernels/hadamard.h"

#include "core/pool.h"
#include "core/scratch.h"
#include "kernels/planes.h"

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

F32x16 load_any(const void* x, Float type, int64_t index) {
  if (type == Float::f32) return load(static_cast<const float*>(x) + index);
  const uint16_t* half = static_cast<const uint16_t*>(x) + index;
  return type == Float::f16 ? load_f16(half) : load_bf16(half);
}

void store_any(void* y, Float type, int64_t index, F32x16 value) {
  if (type == Float::f32) return store(static_cast<float*>(y) + index, value);
  uint16_t* half = static_cast<uint16_t*>(y) + index;
  type == Float::f16 ? store_f16(half, value) : store_bf16(half, value);
}

// The stages of `radix` vectors that stand `step` floats apart.
template <int radix>
inline void butterflies(float* x, int64_t step) {
  F32x16 v[radix];
  unroll<radix>([&](auto i) { v[i] = load(x + i * step); });
  for (int half = radix / 2; half >= 1; half /= 2) {
    for (int i = 0; i < radix; ++i) {
      if (i & half) continue;
      const F32x16 a = v[i], b = v[i + half];
      v[i] = add(a, b);
      v[i + half] = sub(a, b);
    }
  }
  unroll<radix>([&](auto i) { store(x + i * step, v[i]); });
}

template <int radix>
void stages(float* x, int64_t count, int64_t group) {
  const int64_t step = group / radix;
  for (int64_t start = 0; start < count; start += group)
    for (int64_t i = 0; i < step; i += kLanes) butterflies<radix>(x + start + i, step);
}

// All stages of x[power] that are wider than a vector.
void wide_stages(float* x, int64_t power) {
  int64_t group = power;
  for (; group >= kRadix * kLanes; group /= kRadix) stages<kRadix>(x, power, group);
  if constexpr (kRadix > 8) {
    if (group == 8 * kLanes) return stages<8>(x, power, group);
  }
  if constexpr (kRadix > 4) {
    if (group == 4 * kLanes) return stages<4>(x, power, group);
  }
  if (group == 2 * kLanes) stages<2>(x, power, group);
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

  F32x16 operator()(F32x16 x) const {
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
        unroll<kTogether>(
            [&](auto r) { sums[r] = fma(splat(t.factor[(first + r) * t.base + b]), here, sums[r]); });
      }
      unroll<kTogether>([&](auto r) { store(y + (first + r) * t.power + i, sums[r]); });
    }
  }
}

// The block that starts at channel `start` of the whole input.
void transform_block(const Hadamard& t, const Narrow& narrow, const void* x, void* y, int64_t start, float* memory) {
  const int64_t size = t.size(), channel = start % t.dim;
  for (int64_t i = 0; i < size; i += kLanes) {
    F32x16 value = load_any(x, t.type, start + i);
    if (t.before) value = mul(value, load(t.before + channel + i));
    store(memory + i, value);
  }
  float* turned = memory;
  if (t.base > 1) mix_rows(t, memory, turned = memory + size);
  for (int64_t b = 0; b < t.base; ++b) wide_stages(turned + b * t.power, t.power);
  const F32x16 scale = splat(t.scale);
  for (int64_t i = 0; i < size; i += kLanes) {
    F32x16 value = mul(narrow(load(turned + i)), scale);
    if (t.after) value = mul(value, load(t.after + channel + i));
    store_any(y, t.type, start + i, value);
  }
}

}  // namespace

void hadamard(const Hadamard& transform, const void* x, void* y, int threads) {
  const int64_t size = transform.size(), blocks = transform.rows * (transform.dim / size);
  const int64_t together = size < kChunk ? kChunk / size : 1;
  parallel_for(threads, (blocks + together - 1) / together, [&](int64_t chunk, int) {
    thread_local Scratch<float> scratch;
    float* memory = scratch.get(static_cast<size_t>(size) * (transform.base > 1 ? 2 : 1));
    const Narrow narrow;
    for (int64_t b = chunk * together; b < blocks && b < (chunk + 1) * together; ++b)
      transform_block(transform, narrow, x, y, b * size, memory);
  });
}

}  // namespace bw::BW_ISA
