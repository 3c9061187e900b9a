// Attention over a cache, sixteen tokens at a time, with a running softmax (Milakov & Gimelshein 2018, algorithm 3).
#include <cmath>

#include "kernels/decode.h"
#include "kernels/exponential.h"
#include "kernels/planes.h"

namespace bw::BW_ISA {
namespace {

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

template <Float type>
inline F32x16 load_as(const void* values, int64_t index) {
  if constexpr (type == Float::f32) return load(static_cast<const float*>(values) + index);
  const uint16_t* half = static_cast<const uint16_t*>(values) + index;
  if constexpr (type == Float::f16) return load_f16(half);
  return load_bf16(half);
}

template <class Body>
inline void with_type(Float type, Body&& body) {
  switch (type) {
    case Float::f32: return body(std::integral_constant<Float, Float::f32>{});
    case Float::f16: return body(std::integral_constant<Float, Float::f16>{});
    case Float::bf16: return body(std::integral_constant<Float, Float::bf16>{});
  }
}

// Scores of the sixteen tokens that begin at `place`.
template <int rows>
void float_scores(const Attend& work, int64_t place, F32x16 (&scores)[rows]) {
  const Store& keys = *work.keys;
  const void* chunk = keys.chunks[place / kChunkTokens];
  const int64_t block = place % kChunkTokens / kBlockTokens;
  const int64_t start = (work.head * (kChunkTokens / kBlockTokens) + block) * keys.padded * kBlockTokens;
  with_type(keys.type, [&](auto type) {
    for (int64_t d = 0; d < keys.padded; ++d) {
      const F32x16 key = load_as<type>(chunk, start + d * kBlockTokens);
      unroll<rows>([&](auto r) { scores[r] = fma(splat(work.query[r * work.stride + d]), key, scores[r]); });
    }
  });
}

// sums += weights[rows][16] x values of the tokens [from, to).
template <int rows>
void float_values(const Attend& work, int64_t from, int64_t to, const float* weights) {
  const Store& values = *work.values;
  const void* chunk = values.chunks[from / kChunkTokens];
  const int64_t start = (work.head * kChunkTokens + from % kChunkTokens) * values.padded;
  const float* first = weights + from % kBlockTokens;
  with_type(values.type, [&](auto type) {
    for (int64_t d = 0; d < values.padded; d += 16) {
      F32x16 sums[rows];
      unroll<rows>([&](auto r) { sums[r] = load(work.sums + r * work.stride + d); });
      for (int64_t t = 0; t < to - from; ++t) {
        const F32x16 value = load_as<type>(chunk, start + t * values.padded + d);
        unroll<rows>([&](auto r) { sums[r] = fma(splat(first[r * kBlockTokens + t]), value, sums[r]); });
      }
      unroll<rows>([&](auto r) { store(work.sums + r * work.stride + d, sums[r]); });
    }
  });
}

// Cuts off what a row does not see of the block at `place`.
F32x16 masked(F32x16 scores, int64_t first, int64_t last, int64_t place) {
  if (first <= place && last >= place + kBlockTokens) return scores;
  alignas(64) float values[16];
  store(values, scores);
  for (int64_t i = 0; i < kBlockTokens; ++i)
    if (place + i < first || place + i >= last) values[i] = kNothing;
  return load(values);
}

F32x16 capped(F32x16 scores, float cap) {
  alignas(64) float values[16];
  store(values, scores);
  for (float& value : values) value = cap * tanhf(value / cap);
  return load(values);
}

// One block: scores become weights [rows][16], the running sums follow the new peak.
template <int rows>
void soften(const Attend& work, F32x16 (&scores)[rows], int64_t place, int64_t from, int64_t to, float* weights) {
  unroll<rows>([&](auto r) {
    if (work.cap > 0) scores[r] = capped(scores[r], work.cap);
    scores[r] = masked(scores[r], larger(from, work.first[r]), smaller(to, work.last[r]), place);
    const float peak = largest(scores[r]);
    if (peak > work.peak[r]) {
      const float shrink = sum(exponential(splat(work.peak[r] - peak))) / 16;
      work.total[r] *= shrink;
      float* sums = work.sums + r * work.stride;
      for (int64_t d = 0; d < work.stride; ++d) sums[d] *= shrink;
      work.peak[r] = peak;
    }
    const F32x16 weight = exponential(sub(scores[r], splat(work.peak[r])));
    store(weights + r * kBlockTokens, weight);
    work.total[r] += sum(weight);
  });
}

template <int rows>
void run(const Attend& work) {
  alignas(64) float weights[rows * kBlockTokens];
  for (int64_t place = work.start / kBlockTokens * kBlockTokens; place < work.stop; place += kBlockTokens) {
    const int64_t from = larger(place, work.start), to = smaller(place + kBlockTokens, work.stop);
    F32x16 scores[rows];
    unroll<rows>([&](auto r) { scores[r] = zero_f32(); });
    float_scores<rows>(work, place, scores);
    soften<rows>(work, scores, place, from, to, weights);
    float_values<rows>(work, from, to, weights);
  }
}

}  // namespace

void attend(const Attend& work) {
  switch (work.rows) {
    case 1: return run<1>(work);
    case 2: return run<2>(work);
    case 3: return run<3>(work);
    case 4: return run<4>(work);
    case 5: return run<5>(work);
    case 6: return run<6>(work);
    case 7: return run<7>(work);
    case 8: return run<8>(work);
  }
}

}  // namespace bw::BW_ISA
