// Attention over a cache, sixteen tokens at a time, with a running softmax (Milakov & Gimelshein 2018, algorithm 3).
#include <cmath>

#include "kernels/decode.h"
#include "kernels/exponential.h"
#include "kernels/planes.h"

namespace bw::BW_ISA {
namespace {

constexpr int64_t kLargestHead = 1024;  // channels of a head whose keys are coded

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

// The fields of sixteen bytes, lowest first.
template <int bits>
inline void split(const uint8_t* bytes, F32x16 (&fields)[8 / bits]) {
  constexpr int count = 8 / bits;
  I32x16 rest = load_u8_as_i32(bytes);
  unroll<count>([&](auto j) {
    if constexpr (j + 1 == count) {
      fields[j] = to_f32(rest);
    } else {
      const I32x16 higher = shift_right<bits>(rest);
      fields[j] = to_f32(sub(rest, shift_left<bits>(higher)));
      rest = higher;
    }
  });
}

F32x16 zero_of(const CodedStore& store, int64_t chunk, int64_t place) {
  return store.has_zeros ? load(store.zeros[chunk] + place) : splat(store.constant_zero);
}

// Scores with coded keys. Of scale * (code - zero) the scale goes to the query where it belongs to a channel, and to
// the sum where it belongs to a token.
template <int bits, int rows>
void coded_scores(const Attend& work, int64_t place, F32x16 (&scores)[rows]) {
  constexpr int fields = 8 / bits;
  const CodedStore& keys = *work.coded_keys;
  const int64_t chunk = place / kChunkTokens, block = place % kChunkTokens / kBlockTokens;
  const int64_t blocks = kChunkTokens / kBlockTokens;
  const auto* codes = static_cast<const uint8_t*>(keys.codes[chunk]) +
                      (work.head * blocks + block) * (keys.padded / fields) * kBlockTokens;
  alignas(64) float scaled[rows][kLargestHead];
  float shift[rows] = {};
  const float* query[rows];
  unroll<rows>([&](auto r) { query[r] = work.query + r * work.stride; });
  if (keys.across) {
    const int64_t start = (work.head * (kChunkTokens / keys.group) + place % kChunkTokens / keys.group) * keys.padded;
    const float* scale = keys.scales[chunk] + start;
    unroll<rows>([&](auto r) {
      F32x16 sums = zero_f32();
      for (int64_t d = 0; d < keys.padded; d += 16) {
        const F32x16 here = mul(load(query[r] + d), load(scale + d));
        store(scaled[r] + d, here);
        sums = fma(here, zero_of(keys, chunk, start + d), sums);
      }
      shift[r] = sum(sums);
      query[r] = scaled[r];
    });
  }
  const int64_t group = keys.across ? keys.padded : keys.group;
  for (int64_t g = 0; g < (keys.across ? 1 : keys.groups); ++g) {
    F32x16 parts[rows];
    float sums[rows] = {};
    unroll<rows>([&](auto r) { parts[r] = zero_f32(); });
    // What pads the channels counts to the last group.
    const int64_t stop = keys.across || g + 1 == keys.groups ? keys.padded : (g + 1) * group;
    for (int64_t d = g * group; d < stop; d += fields) {
      F32x16 code[fields];
      split<bits>(codes + d / fields * kBlockTokens, code);
      unroll<fields>([&](auto j) {
        unroll<rows>([&](auto r) {
          parts[r] = fma(splat(query[r][d + j]), code[j], parts[r]);
          sums[r] += query[r][d + j];
        });
      });
    }
    if (keys.across) {
      unroll<rows>([&](auto r) { scores[r] = sub(parts[r], splat(shift[r])); });
      return;
    }
    const int64_t at = ((work.head * blocks + block) * keys.groups + g) * kBlockTokens;
    const F32x16 scale = load(keys.scales[chunk] + at), zero = zero_of(keys, chunk, at);
    unroll<rows>([&](auto r) { scores[r] = fma(scale, sub(parts[r], mul(zero, splat(sums[r]))), scores[r]); });
  }
}

// sums += weights[rows][16] x coded values of the tokens [from, to).
template <int bits, int rows>
void coded_values(const Attend& work, int64_t from, int64_t to, const float* weights) {
  constexpr int fields = 8 / bits;
  const CodedStore& values = *work.coded_values;
  const int64_t chunk = from / kChunkTokens, width = values.padded / fields;
  const auto* codes =
      static_cast<const uint8_t*>(values.codes[chunk]) + (work.head * kChunkTokens + from % kChunkTokens) * width;
  const float* first = weights + from % kBlockTokens;
  const int64_t token = work.head * kChunkTokens + from % kChunkTokens;
  const int64_t group =
      (work.head * (kChunkTokens / values.group) + from % kChunkTokens / values.group) * values.padded;
  for (int64_t d = 0; d < values.padded; d += 16 * fields) {
    F32x16 sums[rows][fields];
    unroll<rows>([&](auto r) { unroll<fields>([&](auto j) { sums[r][j] = zero_f32(); }); });
    float whole[rows] = {};
    for (int64_t t = 0; t < to - from; ++t) {
      F32x16 code[fields];
      split<bits>(codes + t * width + d / fields, code);
      unroll<fields>([&](auto j) {
        float scale = 1, zero = 0;
        if (!values.across) {
          const int64_t at = (token + t) * values.groups + smaller(values.groups - 1, (d + 16 * j) / values.group);
          scale = values.scales[chunk][at];
          zero = values.has_zeros ? values.zeros[chunk][at] : values.constant_zero;
        }
        unroll<rows>([&](auto r) {
          const float weight = first[r * kBlockTokens + t] * scale;
          sums[r][j] = fma(splat(weight), sub(code[j], splat(zero)), sums[r][j]);
        });
      });
      unroll<rows>([&](auto r) { whole[r] += first[r * kBlockTokens + t]; });
    }
    unroll<fields>([&](auto j) {
      unroll<rows>([&](auto r) {
        float* target = work.sums + r * work.stride + d + 16 * j;
        F32x16 made = sums[r][j];
        if (values.across) {
          const F32x16 zero = zero_of(values, chunk, group + d + 16 * j);
          made = mul(load(values.scales[chunk] + group + d + 16 * j), sub(made, mul(zero, splat(whole[r]))));
        }
        store(target, add(load(target), made));
      });
    });
  }
}

template <class Body>
inline void with_width(int bits, Body&& body) {
  switch (bits) {
    case 2: return body(std::integral_constant<int, 2>{});
    case 4: return body(std::integral_constant<int, 4>{});
    case 8: return body(std::integral_constant<int, 8>{});
  }
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
    if (work.coded_keys) {
      with_width(work.coded_keys->bits, [&](auto bits) { coded_scores<bits, rows>(work, place, scores); });
    } else {
      float_scores<rows>(work, place, scores);
    }
    soften<rows>(work, scores, place, from, to, weights);
    if (work.coded_values) {
      with_width(work.coded_values->bits, [&](auto bits) { coded_values<bits, rows>(work, from, to, weights); });
    } else {
      float_values<rows>(work, from, to, weights);
    }
  }
}

}  // namespace

void attend(const Attend& work) {
  if constexpr (kLean) {
    // Rows do not touch each other; one form of the loops instead of eight compiles in a fraction of the time.
    for (int r = 0; r < work.rows; ++r) {
      Attend one = work;
      one.rows = 1;
      one.query += r * work.stride;
      one.sums += r * work.stride;
      one.first += r, one.last += r, one.peak += r, one.total += r;
      run<1>(one);
    }
    return;
  }
  if constexpr (!kLean) {
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
}

}  // namespace bw::BW_ISA
