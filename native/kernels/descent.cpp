// Coordinate descent on a quadratic error: each column in turn goes to its minimum, or to the level nearest to that.
#include "kernels/descent.h"

#include <cstring>

#include "core/pool.h"
#include "kernels/sweep.h"
#include "kernels/sweep_feed.h"
#include "kernels/sweep_rules.h"

namespace bw::BW_ISA {
namespace {

struct Unrounded {
  F32x16 value(F32x16 c, int64_t, int64_t, uint8_t*) const { return c; }
};

// Visits the columns first .. last of one tile, whose slopes [last - first][32] count all errors as they are now.
template <class Rule>
bool visit(const Descent& d, const Rule& rule, int64_t tile, int64_t first, int64_t last, float* slopes,
           const float* factors) {
  const int64_t count = last - first;
  // What has left each visited column: its old value less the new one.
  alignas(64) float gone[kSweepPiece * kSweepRows];
  alignas(64) float panel[kSweepPanel * kSweepRows];
  alignas(64) uint8_t codes[kSweepRows];
  F32x16 most = zero_f32();
  for (int64_t start = 0; start < count; start += kSweepPanel, factors += count * kSweepPanel) {
    const int64_t width = count - start < kSweepPanel ? count - start : kSweepPanel;
    std::memset(panel, 0, sizeof(panel));
    std::memcpy(panel, slopes + start * kSweepRows, static_cast<size_t>(width * kSweepRows) * sizeof(float));
    feed_panel(panel, factors, gone, start);
    for (int64_t i = 0; i < width; ++i) {
      const int64_t k = first + start + i, place = (tile * d.in + k) * kSweepRows;
      const float* factor = factors + (start + i) * kSweepPanel;
      for (int64_t v = 0; v < kSweepRows; v += 16) {
        const F32x16 old = load(d.value + place + v);
        const F32x16 wanted = fused(load(panel + i * kSweepRows + v), splat(d.inverse[k]), old);
        const F32x16 value = rule.value(wanted, k, tile * kSweepRows + v, codes);
        const F32x16 left = sub(old, value);
        most = max(absolute(left), most);
        store(gone + (start + i) * kSweepRows + v, left);
        store(d.value + place + v, value);
        store(d.error + place + v, sub(load(d.weight + place + v), value));
        for (int64_t m = i + 1; m < width; ++m) {
          float* slope = panel + m * kSweepRows + v;
          store(slope, fused(splat(factor[m]), left, load(slope)));
        }
      }
    }
  }
  return largest(most) > 0;
}

template <class Rule>
void visit_all(const Descent& d, const Rule& rule, int64_t first, int64_t last, float* slopes, const float* factors,
               uint8_t* moved, int threads) {
  parallel_for(threads, d.tiles(), [&](int64_t tile, int) {
    moved[tile] |= visit(d, rule, tile, first, last, slopes + tile * (last - first) * kSweepRows, factors) ? 1 : 0;
  });
}

}  // namespace

void descend(const Descent& descent, int64_t first, int64_t last, const Rounding* rounding, float* slopes,
             float* factors, uint8_t* moved, int threads) {
  Sweep sweep;
  sweep.out = descent.out;
  sweep.in = descent.in;
  sweep.upper = descent.moments;
  sweep.history = descent.error;
  const int64_t count = last - first, rows = descent.tiles() * kSweepRows;
  std::memset(slopes, 0, static_cast<size_t>(rows * count) * sizeof(float));
  sweep_feed(sweep, {first, count, slopes}, 0, descent.in, first, last, factors, threads);
  gather_factors(sweep, first, last, first, last, factors);
  if (!rounding) return visit_all(descent, Unrounded{}, first, last, slopes, factors, moved, threads);
  with_rule(*rounding, rows,
            [&](const auto& rule) { visit_all(descent, rule, first, last, slopes, factors, moved, threads); });
}

}  // namespace bw::BW_ISA
