// An upper Cholesky factor C, H = C C^T, block after block from the last column on.
//
// A block's corner is factorized by the same steps with smaller blocks; the rows above it are solved with it, tile by
// tile, and what they are worth is taken off everything before the block. Every entry sees the same operations in the
// same order on every instruction set and for any number of threads: runs of 128 columns summed by fused multiply-adds
// from zero, subtracted from the last run on.
#include "kernels/factor.h"

#include <cmath>
#include <cstring>

#include "core/scratch.h"
#include "kernels/symmetric.h"

namespace bw::BW_ISA {
namespace {

constexpr int64_t kPanel = 8;
// A row of a corner; not a power of two, which would press all rows into few lines of the cache.
constexpr int64_t kCornerStride = kFactorBlock + 16;
static_assert(kFactorTile == kTile && kPanel == kSweepPanel && kTile == kSweepRows);

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

struct Minus {
  F32x16 operator()(F32x16 a, F32x16 b) const { return sub(a, b); }
};

// Factorizes a[width][stride] column by column; false where a pivot is not a positive number.
bool factor_tile(float* a, int64_t stride, int64_t width) {
  for (int64_t k = width - 1; k >= 0; --k) {
    const float square = a[k * stride + k];
    if (!(square > 0) || !std::isfinite(square)) return false;
    const float pivot = std::sqrt(square);
    a[k * stride + k] = pivot;
    for (int64_t i = 0; i < k; ++i) a[i * stride + k] /= pivot;
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = i; j < k; ++j)
        a[i * stride + j] = __builtin_fmaf(-a[i * stride + k], a[j * stride + k], a[i * stride + j]);
  }
  return true;
}

// A factorized corner in the form in which tiles are solved with it.
struct Corner {
  const float* factor;  // [width][stride]
  int64_t stride;
  int64_t width;
  float* panels;  // for the panel of rows k .. k + 7: [width - k - 8][8], the negative entries behind its own columns

  float* panel(int64_t k) const { return panels + k * (width + 8); }

  void gather() const {
    for (int64_t k = 0; k + kPanel < width; k += kPanel)
      for (int64_t m = k + kPanel; m < width; ++m)
        for (int64_t c = 0; c < kPanel; ++c) panel(k)[(m - k - kPanel) * kPanel + c] = -factor[(k + c) * stride + m];
  }

  // x[width][32], 32 rows of H, becomes their rows of C: x C^T = H, from the last column on.
  void solve(float* x) const {
    for (int64_t k = (width - 1) / kPanel * kPanel; k >= 0; k -= kPanel) {
      const int64_t columns = smaller(kPanel, width - k), behind = width - k - kPanel;
      if (behind > 0) feed_panel(x + k * kTile, panel(k), x + (k + kPanel) * kTile, behind);
      for (int64_t c = columns - 1; c >= 0; --c) {
        const F32x16 pivot = splat(factor[(k + c) * stride + k + c]);
        for (int64_t v = 0; v < kTile; v += 16) {
          float* place = x + k * kTile + v;
          const F32x16 value = div(load(place + c * kTile), pivot);
          store(place + c * kTile, value);
          for (int64_t i = 0; i < c; ++i) {
            const F32x16 weight = splat(-factor[(k + i) * stride + k + c]);
            store(place + i * kTile, fused(weight, value, load(place + i * kTile)));
          }
        }
      }
    }
  }
};

// Rows a[32][stride], `width` columns, to x[width][32].
void turn(const float* a, int64_t stride, int64_t width, float* x) {
  for (int64_t r = 0; r < kTile; ++r)
    for (int64_t k = 0; k < width; ++k) x[k * kTile + r] = a[r * stride + k];
}

// And back, every column over its divisor.
void turn_back(const float* x, int64_t stride, int64_t width, const float* divisors, float* a) {
  for (int64_t r = 0; r < kTile; ++r)
    for (int64_t k = 0; k < width; ++k)
      a[r * stride + k] = divisors ? x[k * kTile + r] / divisors[k] : x[k * kTile + r];
}

// Factorizes a corner a[width][kCornerStride], up to a block.
bool factor_corner(float* a, int64_t width, float* packed, float* panels) {
  for (int64_t start = (width - 1) / kTile * kTile; start >= 0; start -= kTile) {
    float* own = a + start * kCornerStride + start;
    const int64_t columns = smaller(kTile, width - start), tiles = start / kTile;
    if (!factor_tile(own, kCornerStride, columns)) return false;
    const Corner corner{own, kCornerStride, columns, panels};
    corner.gather();
    for (int64_t tile = 0; tile < tiles; ++tile) {
      float* rows = a + tile * kTile * kCornerStride + start;
      float* x = packed + tile * columns * kTile;
      turn(rows, kCornerStride, columns, x);
      corner.solve(x);
      turn_back(x, kCornerStride, columns, nullptr, rows);
    }
    symmetric_update(a, kCornerStride, tiles, packed, columns, 1, Minus());
  }
  return true;
}

// What is above the diagonal of H, with the other diagonal.
void copy_upper(const Factorization& f, int threads) {
  constexpr int64_t kRows = 32;
  parallel_for(threads, (f.size + kRows - 1) / kRows, [&](int64_t chunk, int) {
    for (int64_t i = chunk * kRows; i < smaller((chunk + 1) * kRows, f.size); ++i) {
      f.upper[i * f.size + i] = f.diagonal[i];
      std::memcpy(f.upper + i * f.size + i + 1, f.matrix + i * f.size + i + 1,
                  static_cast<size_t>(f.size - i - 1) * sizeof(float));
    }
  });
}

}  // namespace

bool upper_factor(const Factorization& f, float* packed, int threads) {
  thread_local Scratch<float> memory;
  float* own = memory.get(kFactorBlock * (kCornerStride + 2 * (kFactorBlock + 8)));
  float* panels = own + kFactorBlock * kCornerStride;
  float* inner = panels + kFactorBlock * (kFactorBlock + 8);
  alignas(64) float pivots[kFactorBlock];
  copy_upper(f, threads);
  for (int64_t start = (f.size - 1) / kFactorBlock * kFactorBlock; start >= 0; start -= kFactorBlock) {
    const int64_t width = smaller(kFactorBlock, f.size - start), tiles = start / kTile;
    float* corner = f.upper + start * f.size + start;
    for (int64_t i = 0; i < width; ++i)
      std::memcpy(own + i * kCornerStride, corner + i * f.size, static_cast<size_t>(width) * sizeof(float));
    if (!factor_corner(own, width, inner, panels)) return false;
    const Corner solved{own, kCornerStride, width, panels};
    solved.gather();
    for (int64_t k = 0; k < width; ++k) {
      pivots[k] = own[k * kCornerStride + k];
      f.pivots[start + k] = pivots[k] * pivots[k];
    }
    for (int64_t i = 0; i < width; ++i)
      for (int64_t k = 0; k < width; ++k)
        corner[i * f.size + k] = k > i ? own[i * kCornerStride + k] / pivots[k] : 0.0f;
    parallel_for(threads, tiles, [&](int64_t tile, int) {
      float* rows = f.upper + tile * kTile * f.size + start;
      float* x = packed + tile * width * kTile;
      turn(rows, f.size, width, x);
      solved.solve(x);
      turn_back(x, f.size, width, pivots, rows);
    });
    symmetric_update(f.upper, f.size, tiles, packed, width, threads, Minus());
  }
  return true;
}

}  // namespace bw::BW_ISA
