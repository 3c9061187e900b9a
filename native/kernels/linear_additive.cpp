// Products with sums of codebook entries of eight weights, in fp32.
//
// Four rows are decoded at once: two neighbouring vectors of a row are one load of 16 halves for every codebook. The
// decoded rows stay in the cache and are used by all rows of activations, four at a time in registers.
#include <cstring>

#include "core/pool.h"
#include "core/scratch.h"
#include "kernels/planes.h"
#include "kernels/tile.h"
#include "kernels/variants.h"
#include "kernels/vectors.h"
#include "simd/lookup.h"

namespace bw::BW_ISA {
namespace {

constexpr int kTogether = 4;  // rows decoded at once, and rows of activations in registers

template <int bytes>
inline int64_t index_at(const uint8_t* codes) {
  if constexpr (bytes == 1) return codes[0];
  return codes[0] | codes[1] << 8;
}

// One row of weights, [in rounded up to 16].
template <int bytes>
void decode_row(const AdditiveWeight& weight, int64_t row, float* values) {
  constexpr int64_t entries = bytes == 1 ? 256 : 65536;
  alignas(16) static const uint16_t nothing[kSpan] = {};
  const uint8_t* codes = weight.codes + row * weight.row_bytes();
  const float* scales = weight.scale + row * weight.groups();
  const int64_t step = weight.books * bytes, spans = weight.in / kSpan;
  int64_t group = 0, left = weight.group;
  for (int64_t span = 0; span < spans; span += 2, codes += 2 * step) {
    const bool whole = span + 1 < spans;
    F32x16 total = zero_f32();
    for (int64_t m = 0; m < weight.books; ++m) {
      const uint16_t* book = weight.entries + m * entries * kSpan;
      const uint16_t* first = book + index_at<bytes>(codes + m * bytes) * kSpan;
      const uint16_t* second = whole ? book + index_at<bytes>(codes + step + m * bytes) * kSpan : nothing;
      const F32x16 pair = load_pair_f16(first, second);
      total = m == 0 ? pair : add(total, pair);
    }
    store(values + span * kSpan, mul(total, splat(scales[group])));
    if ((left -= 2 * kSpan) <= 0) ++group, left = weight.group;
  }
}

template <int rows>
inline void dot_rows(const float* w, const float* x, int64_t width, int64_t count, float* sums) {
  F32x16 acc[kTogether][rows];
  unroll<kTogether>([&](auto t) { unroll<rows>([&](auto r) { acc[t][r] = zero_f32(); }); });
  for (int64_t k = 0; k < width; k += 16) {
    F32x16 part[kTogether];
    unroll<kTogether>([&](auto t) { part[t] = load(w + t * width + k); });
    unroll<rows>([&](auto r) {
      const F32x16 here = load(x + r * width + k);
      unroll<kTogether>([&](auto t) { acc[t][r] = fma(part[t], here, acc[t][r]); });
    });
  }
  unroll<rows>([&](auto r) {
    for (int64_t t = 0; t < count; ++t) sums[r * kRows + t] = sum(acc[t][r]);
  });
}

template <int bytes>
void run_tile(const AdditiveWeight& weight, const float* x, int64_t rows, const Output& y, int64_t tile) {
  thread_local Scratch<float> decoded, kept;
  const int64_t width = weight.padded(), first = tile * kRows;
  float* w = decoded.get(static_cast<size_t>(kTogether * width));
  float* sums = kept.get(static_cast<size_t>(rows) * kRows);
  std::memset(sums, 0, sizeof(float) * static_cast<size_t>(rows) * kRows);
  for (int64_t start = 0; start < kRows && first + start < weight.out; start += kTogether) {
    const int64_t rest = weight.out - first - start, count = rest < kTogether ? rest : kTogether;
    // Rows that are not there repeat the last one; their sums are dropped.
    for (int64_t t = 0; t < kTogether; ++t)
      decode_row<bytes>(weight, first + start + (t < count ? t : count - 1), w + t * width);
    int64_t row = 0;
    if constexpr (!kLean)
      for (; row + 4 <= rows; row += 4) dot_rows<4>(w, x + row * width, width, count, sums + row * kRows + start);
    for (; row < rows; ++row) dot_rows<1>(w, x + row * width, width, count, sums + row * kRows + start);
  }
  for (int64_t row = 0; row < rows; ++row) write(y, weight.out, row, tile, load(sums + row * kRows));
}

}  // namespace

void additive_float(const AdditiveWeight& weight, const void* x, Float type, int64_t rows, const Output& y,
                    int threads) {
  if (rows == 0) return;
  const int64_t width = weight.padded();
  thread_local Scratch<float> padded;
  float* values = padded.get(static_cast<size_t>(rows * width));
  const int64_t bytes = type == Float::f32 ? 4 : 2;
  for (int64_t row = 0; row < rows; ++row) {
    to_floats(static_cast<const uint8_t*>(x) + row * weight.in * bytes, type, weight.in, values + row * width);
    for (int64_t k = weight.in; k < width; ++k) values[row * width + k] = 0;
  }
  parallel_for(threads, (weight.out + kRows - 1) / kRows, [&](int64_t tile, int) {
    weight.index_bytes == 1 ? run_tile<1>(weight, values, rows, y, tile) : run_tile<2>(weight, values, rows, y, tile);
  });
}

}  // namespace bw::BW_ISA
