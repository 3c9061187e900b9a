// Rounding of a run of columns, each corrected by the errors of those before it.
#include "core/pool.h"
#include "kernels/sweep.h"
#include "kernels/sweep_feed.h"
#include "kernels/sweep_rules.h"

namespace bw::BW_ISA {
namespace {

// Leaves the values as they are, and hands them out.
struct Unrounded {
  float* current;  // [out][stride]
  int64_t stride;
  int64_t first;
  int64_t out;

  F32x16 value(F32x16 c, int64_t k, int64_t row, uint8_t*) const {
    alignas(64) float values[16];
    store(values, c);
    for (int64_t r = 0; r < 16 && row + r < out; ++r) current[(row + r) * stride + k - first] = values[r];
    return c;
  }
};

// Eight columns from k on, of which `width` are there: x[8][32] knows of all columns before them.
template <bool keep, class Rule>
void round_panel(const Sweep& sweep, const Rule& rule, int64_t tile, int64_t k, int64_t width, float* x,
                 const float* factors, uint8_t* codes) {  // codes[8][32]
  const int64_t feeds = sweep.feeds();
  float* target = sweep.target + (tile * sweep.in + k) * kSweepRows;
  float* history = sweep.history + (tile * sweep.in + k) * feeds * kSweepRows;
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t v = 0; v < kSweepRows; v += 16) {
      const F32x16 current = load(x + i * kSweepRows + v);
      const F32x16 value = rule.value(current, k + i, tile * kSweepRows + v, codes + i * kSweepRows + v);
      const F32x16 error = sub(load(target + i * kSweepRows + v), value);
      float* past = history + i * feeds * kSweepRows + v;
      store(past, error);
      // Columns that nobody rounded carry nothing on: the span is fitted to the weights it would have by itself.
      const F32x16 carried = keep ? current : zero_f32();
      if (feeds == 2) store(past + kSweepRows, carried);
      if constexpr (keep) store(target + i * kSweepRows + v, value);
      for (int64_t m = i + 1; m < width; ++m) {
        F32x16 sum = load(x + m * kSweepRows + v);
        sum = fused(splat(factors[i * feeds * kSweepPanel + m]), error, sum);
        if (feeds == 2) sum = fused(splat(factors[(2 * i + 1) * kSweepPanel + m]), carried, sum);
        store(x + m * kSweepRows + v, sum);
      }
    }
  }
}

// Codes [last - first][32] of a tile to their rows and columns.
void place_codes(const Sweep& sweep, int64_t tile, int64_t first, int64_t last, const uint8_t* found, uint8_t* codes) {
  const int64_t start = tile * kSweepRows;
  for (int64_t r = 0; r < kSweepRows && start + r < sweep.out; ++r) {
    uint8_t* row = codes + (start + r) * sweep.in;
    for (int64_t k = first; k < last; ++k) row[sweep.order[k]] = found[(k - first) * kSweepRows + r];
  }
}

template <bool keep, class Rule>
void round_columns(const Sweep& sweep, const Columns& x, int64_t first, int64_t last, const Rule& rule, uint8_t* codes,
                   float* factors, int threads) {
  const int64_t feeds = sweep.feeds(), rows = (last - first) * feeds;
  const int64_t panels = (last - first + kSweepPanel - 1) / kSweepPanel;
  gather_factors(sweep, first, last, first, last, factors);
  parallel_for(threads, sweep.tiles(), [&](int64_t tile, int) {
    const float* history = sweep.history + (tile * sweep.in + first) * feeds * kSweepRows;
    alignas(64) float panel[kSweepPanel * kSweepRows];
    alignas(64) uint8_t found[kSweepPiece * kSweepRows];
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t k = first + p * kSweepPanel, width = last - k < kSweepPanel ? last - k : kSweepPanel;
      const float* source = x.values + (tile * x.count + k - x.first) * kSweepRows;
      for (int64_t i = 0; i < kSweepPanel * kSweepRows; ++i) panel[i] = i < width * kSweepRows ? source[i] : 0.0f;
      const float* factor = factors + p * rows * kSweepPanel;
      const int64_t before = p * kSweepPanel * feeds;
      feed_panel(panel, factor, history, before);
      round_panel<keep>(sweep, rule, tile, k, width, panel, factor + before * kSweepPanel,
                        found + p * kSweepPanel * kSweepRows);
    }
    if constexpr (keep) place_codes(sweep, tile, first, last, found, codes);
  });
}

}  // namespace

void sweep_round(const Sweep& sweep, const Columns& x, int64_t first, int64_t last, const Rounding& rounding,
                 uint8_t* codes, float* factors, int threads) {
  with_rule(rounding, sweep.tiles() * kSweepRows,
            [&](const auto& rule) { round_columns<true>(sweep, x, first, last, rule, codes, factors, threads); });
}

void sweep_look(const Sweep& sweep, const Columns& x, int64_t first, int64_t last, float* current, int64_t stride,
                float* factors, int threads) {
  const Unrounded rule{current, stride, first, sweep.out};
  round_columns<false>(sweep, x, first, last, rule, nullptr, factors, threads);
}

}  // namespace bw::BW_ISA
