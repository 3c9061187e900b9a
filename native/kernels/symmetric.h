// Products of a matrix with its own transpose, on and above the diagonal.
#pragma once

#include "core/pool.h"
#include "kernels/sweep_feed.h"

namespace bw::BW_ISA {

// The matrix is packed as tiles of 32 rows, [tiles][count][32]: a vector holds one column of 16 rows.
constexpr int64_t kTile = 32;
// Columns whose products are summed from zero before they reach the result: two tiles of them fit the first-level
// cache.
constexpr int64_t kSymmetricRun = 128;
// Tiles of rows that pass over one tile of columns while it is in the cache.
constexpr int64_t kTileGroup = 4;

// a[8][32] becomes take(a, sum over j of left[j][row] * right[j][column]), each sum one fused multiply-add after the
// other from zero on.
template <class Take>
inline void product_panel(float* a, int64_t stride, const float* left, const float* right, int64_t count,
                          const Take& take) {
  for (int64_t column = 0; column < kTile; column += 16 * kFeedVectors) {
    for (int64_t row = 0; row < 8; row += kFeedColumns) {
      F32x16 sums[kFeedColumns][kFeedVectors];
      unroll<kFeedColumns>([&](auto c) { unroll<kFeedVectors>([&](auto v) { sums[c][v] = zero_f32(); }); });
      const float* factor = left + row;
      const float* past = right + column;
      for (int64_t j = 0; j < count; ++j, factor += kTile, past += kTile) {
        F32x16 here[kFeedVectors];
        unroll<kFeedVectors>([&](auto v) { here[v] = load(past + 16 * v); });
        unroll<kFeedColumns>([&](auto c) {
          const F32x16 weight = splat(factor[c]);
          unroll<kFeedVectors>([&](auto v) { sums[c][v] = fused(weight, here[v], sums[c][v]); });
        });
      }
      unroll<kFeedColumns>([&](auto c) {
        float* place = a + (row + c) * stride + column;
        unroll<kFeedVectors>([&](auto v) { store(place + 16 * v, take(load(place + 16 * v), sums[c][v])); });
      });
    }
  }
}

// The tiles i <= j of a[32 * tiles][stride] take in the products of the packed tiles i and j, a run of columns at a
// time.
template <class Take>
inline void symmetric_update(float* a, int64_t stride, int64_t tiles, const float* packed, int64_t count, int threads,
                             const Take& take) {
  const int64_t groups = (tiles + kTileGroup - 1) / kTileGroup, size = count * kTile;
  parallel_for(threads, groups, [&](int64_t group, int) {
    const int64_t first = group * kTileGroup;
    for (int64_t j = first; j < tiles; ++j) {
      for (int64_t i = first; i < first + kTileGroup && i <= j; ++i) {
        for (int64_t run = 0; run < count; run += kSymmetricRun) {
          const int64_t length = count - run < kSymmetricRun ? count - run : kSymmetricRun;
          const float* left = packed + i * size + run * kTile;
          const float* right = packed + j * size + run * kTile;
          for (int64_t row = 0; row < kTile; row += 8)
            product_panel(a + (i * kTile + row) * stride + j * kTile, stride, left + row, right, length, take);
        }
      }
    }
  });
}

}  // namespace bw::BW_ISA
