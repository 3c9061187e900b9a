// The product at the heart of the sweep: eight columns of a tile take in what a run of finished columns feeds back.
#pragma once

#include <cstring>

#include "core/sweep.h"
#include "kernels/planes.h"
#include "simd/simd.h"

#if BW_IS == BW_IS_scalar
#include <cmath>
#endif

namespace bw::BW_ISA {

// a * b + c, rounded once on every instruction set: the results of a sweep do not depend on which one runs.
inline F32x16 fused(F32x16 a, F32x16 b, F32x16 c) {
#if BW_IS == BW_IS_scalar
  for (int i = 0; i < 16; ++i) c.v[i] = std::fma(a.v[i], b.v[i], c.v[i]);
  return c;
#else
  return fma(a, b, c);
#endif
}

// Sums that are kept in registers at once: `kFeedVectors` vectors of rows times `kFeedColumns` columns.
#if BW_IS == BW_IS_avx512
constexpr int kFeedVectors = 2, kFeedColumns = 8;
#else
constexpr int kFeedVectors = 1, kFeedColumns = 4;
#endif

// x[8][32] += factors[count][8]^T history[count][32], one fused multiply-add after the other in the order of count.
inline void feed_panel(float* x, const float* factors, const float* history, int64_t count) {
  for (int row = 0; row < kSweepRows; row += 16 * kFeedVectors) {
    for (int column = 0; column < kSweepPanel; column += kFeedColumns) {
      F32x16 sums[kFeedColumns][kFeedVectors];
      float* place = x + column * kSweepRows + row;
      unroll<kFeedColumns>(
          [&](auto c) { unroll<kFeedVectors>([&](auto v) { sums[c][v] = load(place + c * kSweepRows + 16 * v); }); });
      const float* factor = factors + column;
      const float* past = history + row;
      for (int64_t j = 0; j < count; ++j, factor += kSweepPanel, past += kSweepRows) {
        F32x16 here[kFeedVectors];
        unroll<kFeedVectors>([&](auto v) { here[v] = load(past + 16 * v); });
        unroll<kFeedColumns>([&](auto c) {
          const F32x16 weight = splat(factor[c]);
          unroll<kFeedVectors>([&](auto v) { sums[c][v] = fused(weight, here[v], sums[c][v]); });
        });
      }
      unroll<kFeedColumns>(
          [&](auto c) { unroll<kFeedVectors>([&](auto v) { store(place + c * kSweepRows + 16 * v, sums[c][v]); }); });
    }
  }
}

// Feedback of the columns from .. to on the columns first .. last as panels [to - from][feeds][8], one behind the
// other; zeros where a panel has less columns. Row after row: rows of a large matrix lie on pages of their own.
inline void gather_factors(const Sweep& sweep, int64_t from, int64_t to, int64_t first, int64_t last, float* factors) {
  const int64_t feeds = sweep.feeds(), panel = (to - from) * feeds * kSweepPanel;
  for (int64_t j = from; j < to; ++j) {
    for (int64_t feed = 0; feed < feeds; ++feed, factors += kSweepPanel) {
      const float* source = (feed ? sweep.carry : sweep.upper) + j * sweep.in;
      float* place = factors;
      int64_t column = first;
      for (; column + kSweepPanel <= last; column += kSweepPanel, place += panel)
        std::memcpy(place, source + column, kSweepPanel * sizeof(float));
      for (int64_t c = 0; column < last && c < kSweepPanel; ++c)
        place[c] = column + c < last ? source[column + c] : 0.0f;
    }
  }
}

}  // namespace bw::BW_ISA
