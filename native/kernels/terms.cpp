// What is added to a product: single weights, narrow factors, shifts of zero points; then bias and the output's type.
#include <cstring>

#include "core/pool.h"
#include "core/scratch.h"
#include "core/table.h"
#include "kernels/tile.h"
#include "kernels/variants.h"

namespace bw::BW_ISA {
namespace {

float dot_floats(const float* a, const float* b, int64_t count) {
  F32x16 sums[4] = {zero_f32(), zero_f32(), zero_f32(), zero_f32()};
  int64_t k = 0;
  for (; k + 64 <= count; k += 64)
    for (int s = 0; s < 4; ++s) sums[s] = fma(load(a + k + 16 * s), load(b + k + 16 * s), sums[s]);
  float total = sum(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
  for (; k < count; ++k) total += a[k] * b[k];
  return total;
}

// The single weights of one output times one row of activations.
float single_weights(const Terms& terms, int64_t output, const float* x) {
  float sums[4] = {};
  int32_t k = terms.starts[output];
  const int32_t stop = terms.starts[output + 1];
  for (; k + 4 <= stop; k += 4)
    for (int s = 0; s < 4; ++s) sums[s] += terms.values[k + s] * x[terms.columns[k + s]];
  for (; k < stop; ++k) sums[0] += terms.values[k] * x[terms.columns[k]];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Sixteen rows of activations side by side: [in][16].
void side_by_side(const float* x, int64_t first, int64_t rows, int64_t in, float* target) {
  for (int64_t k = 0; k < in; ++k)
    for (int r = 0; r < kRows; ++r) target[k * kRows + r] = first + r < rows ? x[(first + r) * in + k] : 0.0f;
}

struct Job {
  const Terms& terms;
  const float* x;       // [rows][in]
  const float* narrow;  // [rows][rank]: x right^T
  const float* panels;  // [panels][in][16], or null
  int64_t rows, in, out;
};

// Adds the single weights of a tile for up to 16 rows from `first`; added[row][16 outputs].
void add_singles(const Job& job, int64_t tile, int64_t first, int64_t count, float* added) {
  const int64_t outputs = job.out - tile * kRows < kRows ? job.out - tile * kRows : kRows;
  for (int64_t o = 0; o < outputs; ++o) {
    const int64_t output = tile * kRows + o;
    if (!job.panels) {
      for (int64_t r = 0; r < count; ++r)
        added[r * kRows + o] += single_weights(job.terms, output, job.x + (first + r) * job.in);
      continue;
    }
    const float* panel = job.panels + first / kRows * job.in * kRows;
    F32x16 sum = zero_f32();
    for (int32_t k = job.terms.starts[output]; k < job.terms.starts[output + 1]; ++k)
      sum = fma(splat(job.terms.values[k]), load(panel + int64_t{job.terms.columns[k]} * kRows), sum);
    alignas(64) float values[kRows];
    store(values, sum);
    for (int64_t r = 0; r < count; ++r) added[r * kRows + o] += values[r];
  }
}

void finish_tile(const Job& job, const float* main, const Output& y, int64_t tile) {
  const Terms& terms = job.terms;
  const int64_t outputs = job.out - tile * kRows < kRows ? job.out - tile * kRows : kRows;
  alignas(64) float added[kRows * kRows];
  for (int64_t first = 0; first < job.rows; first += kRows) {
    const int64_t count = job.rows - first < kRows ? job.rows - first : kRows;
    std::memset(added, 0, sizeof(added));
    for (int64_t r = 0; r < count; ++r)
      std::memcpy(added + r * kRows, main + (first + r) * job.out + tile * kRows,
                  static_cast<size_t>(outputs) * sizeof(float));
    if (terms.starts) add_singles(job, tile, first, count, added);
    for (int64_t r = 0; r < count; ++r) {
      F32x16 sum = load(added + r * kRows);
      for (int64_t k = 0; k < terms.rank; ++k)
        sum = fma(load(terms.left + (tile * terms.rank + k) * kRows), splat(job.narrow[(first + r) * terms.rank + k]),
                  sum);
      for (int64_t k = 0; k < terms.shifts; ++k)
        sum = fma(load(terms.sums + (tile * terms.shifts + k) * kRows),
                  splat(terms.shift[(first + r) * terms.shifts + k]), sum);
      write(y, job.out, first + r, tile, sum);
    }
  }
}

}  // namespace

void add_terms(const Terms& terms, const float* x, int64_t rows, int64_t in, int64_t out, const float* main,
               const Output& y, int threads) {
  thread_local Scratch<float> narrow_memory, panel_memory;
  float* narrow = narrow_memory.get(static_cast<size_t>(rows * terms.rank) + 1);
  parallel_for(threads, terms.rank, [&](int64_t k, int) {
    for (int64_t r = 0; r < rows; ++r) narrow[r * terms.rank + k] = dot_floats(x + r * in, terms.right + k * in, in);
  });
  float* panels = nullptr;
  if (terms.starts && rows > 1) {
    const int64_t count = (rows + kRows - 1) / kRows;
    panels = panel_memory.get(static_cast<size_t>(count * in * kRows));
    parallel_for(threads, count,
                 [&](int64_t p, int) { side_by_side(x, p * kRows, rows, in, panels + p * in * kRows); });
  }
  const Job job{terms, x, narrow, panels, rows, in, out};
  const int64_t tiles = (out + kRows - 1) / kRows;
  parallel_for(threads, (tiles + 3) / 4, [&](int64_t chunk, int) {
    for (int64_t tile = 4 * chunk; tile < 4 * chunk + 4 && tile < tiles; ++tile) finish_tile(job, main, y, tile);
  });
}

}  // namespace bw::BW_ISA
