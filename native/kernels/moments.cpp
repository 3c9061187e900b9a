// Second moments of tokens: x^T x on and above the diagonal, added to a running sum.
//
// An entry is the sum over runs of 128 tokens, each taken from zero by one fused multiply-add after the other; the sum
// of all runs then reaches the total at once. Products of two bf16 or fp16 numbers are exact in such a sum.
#include "kernels/moments.h"

#include "core/scratch.h"
#include "kernels/load.h"
#include "kernels/symmetric.h"

namespace bw::BW_ISA {
namespace {

// Tiles of rows and of columns of one block: it and the tokens of both stay in the second-level cache.
constexpr int64_t kDown = kTileGroup, kAcross = 16, kTokens = 512;
constexpr int64_t kStride = kAcross * kTile;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

struct Plus {
  F32x16 operator()(F32x16 a, F32x16 b) const { return add(a, b); }
};

// Tokens x[tokens][dim] to tiles [tiles][tokens][32], zeros behind the last channel.
void pack_tokens(const Moments& m, float* packed, int threads) {
  constexpr int64_t kRows = 32;
  const int64_t tiles = m.tiles();
  parallel_for(threads, (m.tokens + kRows - 1) / kRows, [&](int64_t chunk, int) {
    const int64_t stop = smaller((chunk + 1) * kRows, m.tokens);
    for (int64_t tile = 0; tile < tiles; ++tile)
      for (int64_t token = chunk * kRows; token < stop; ++token)
        load_padded(m.x, m.type, token * m.dim + tile * kTile, smaller(kTile, m.dim - tile * kTile), kTile,
                    packed + (tile * m.tokens + token) * kTile);
  });
}

// The tiles first .. of rows by start .. of columns into block[kDown * 32][kStride].
void multiply(const Moments& m, const float* packed, int64_t first, int64_t start, float* block) {
  const int64_t size = m.tokens * kTile, tiles = m.tiles();
  for (int64_t i = 0; i < kDown * kTile * kStride; i += 16) store(block + i, zero_f32());
  for (int64_t some = 0; some < m.tokens; some += kTokens) {
    const int64_t most = smaller(some + kTokens, m.tokens);
    for (int64_t j = start; j < smaller(start + kAcross, tiles); ++j) {
      for (int64_t i = first; i < first + kDown && i <= j; ++i) {
        float* place = block + (i - first) * kTile * kStride + (j - start) * kTile;
        for (int64_t run = some; run < most; run += kSymmetricRun) {
          const float* left = packed + i * size + run * kTile;
          const float* right = packed + j * size + run * kTile;
          for (int64_t row = 0; row < kTile; row += 8)
            product_panel(place + row * kStride, kStride, left + row, right, smaller(kSymmetricRun, most - run),
                          Plus());
        }
      }
    }
  }
}

template <class T>
void add_block(const Moments& m, int64_t first, int64_t start, const float* block, T* total) {
  const int64_t row = first * kTile, column = start * kTile;
  const int64_t width = smaller(kStride, m.dim - column);
  for (int64_t r = 0; r < smaller(kDown * kTile, m.dim - row); ++r) {
    // Tiles below the diagonal were not computed.
    const int64_t begin = (row + r) / kTile * kTile > column ? (row + r) / kTile * kTile - column : 0;
    T* place = total + (row + r) * m.dim + column;
    for (int64_t c = begin; c < width; ++c) place[c] += static_cast<T>(block[r * kStride + c]);
  }
}

}  // namespace

void add_moments(const Moments& m, float* packed, int threads) {
  pack_tokens(m, packed, threads);
  const int64_t groups = (m.tiles() + kDown - 1) / kDown, blocks = (m.tiles() + kAcross - 1) / kAcross;
  parallel_for(threads, groups * blocks, [&](int64_t chunk, int) {
    const int64_t first = chunk / blocks * kDown, start = first + chunk % blocks * kAcross;
    if (start >= m.tiles()) return;
    thread_local Scratch<float> memory;
    float* block = memory.get(kDown * kTile * kStride);
    multiply(m, packed, first, start, block);
    if (m.total) {
      add_block(m, first, start, block, m.total);
    } else {
      add_block(m, first, start, block, m.total64);
    }
  });
}

}  // namespace bw::BW_ISA
