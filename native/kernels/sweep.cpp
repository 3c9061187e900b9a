// Layout and feedback of the column sweep.
#include "kernels/sweep.h"

#include "core/pool.h"
#include "kernels/sweep_feed.h"

namespace bw::BW_ISA {
namespace {

// Columns of history that stay in the first-level cache while all panels pass.
constexpr int64_t kPart = 128;
// Panels whose factors one thread gathers at once.
constexpr int64_t kGather = 16;
// Columns that are turned at once: rows a power of two apart would push each other out of the cache.
constexpr int64_t kTurn = 64;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t panels_of(int64_t first, int64_t last) { return (last - first + kSweepPanel - 1) / kSweepPanel; }

}  // namespace

void sweep_load(const Sweep& sweep, const float* w, int threads) {
  parallel_for(threads, sweep.tiles(), [&](int64_t tile, int) {
    const int64_t rows = smaller(kSweepRows, sweep.out - tile * kSweepRows);
    float* target = sweep.target + tile * sweep.in * kSweepRows;
    const float* source = w + tile * kSweepRows * sweep.in;
    for (int64_t start = 0; start < sweep.in; start += kTurn) {
      const int64_t stop = smaller(start + kTurn, sweep.in);
      for (int64_t r = 0; r < kSweepRows; ++r)
        for (int64_t k = start; k < stop; ++k)
          target[k * kSweepRows + r] = r < rows ? source[r * sweep.in + sweep.order[k]] : 0.0f;
    }
  });
}

void sweep_values(const Sweep& sweep, float* values, int threads) {
  parallel_for(threads, sweep.tiles(), [&](int64_t tile, int) {
    const int64_t rows = smaller(kSweepRows, sweep.out - tile * kSweepRows);
    const float* target = sweep.target + tile * sweep.in * kSweepRows;
    float* place = values + tile * kSweepRows * sweep.in;
    for (int64_t start = 0; start < sweep.in; start += kTurn) {
      const int64_t stop = smaller(start + kTurn, sweep.in);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = start; k < stop; ++k) place[r * sweep.in + sweep.order[k]] = target[k * kSweepRows + r];
    }
  });
}

void sweep_begin(const Sweep& sweep, const Columns& x, int threads) {
  parallel_for(threads, sweep.tiles(), [&](int64_t tile, int) {
    const float* source = sweep.target + (tile * sweep.in + x.first) * kSweepRows;
    float* values = x.values + tile * x.count * kSweepRows;
    for (int64_t i = 0; i < x.count * kSweepRows; i += 16) store(values + i, load(source + i));
  });
}

void sweep_feed(const Sweep& sweep, const Columns& x, int64_t from, int64_t to, int64_t first, int64_t last,
                float* factors, int threads) {
  const int64_t panels = panels_of(first, last), feeds = sweep.feeds();
  for (int64_t run = from; run < to; run += kSweepRun) {
    const int64_t stop = smaller(run + kSweepRun, to), rows = (stop - run) * feeds;
    parallel_for(threads, (panels + kGather - 1) / kGather, [&](int64_t chunk, int) {
      const int64_t start = first + chunk * kGather * kSweepPanel;
      gather_factors(sweep, run, stop, start, smaller(start + kGather * kSweepPanel, last),
                     factors + chunk * kGather * rows * kSweepPanel);
    });
    parallel_for(threads, sweep.tiles(), [&](int64_t tile, int) {
      const float* history = sweep.history + (tile * sweep.in + run) * feeds * kSweepRows;
      float* values = x.values + (tile * x.count + first - x.first) * kSweepRows;
      alignas(64) float edge[kSweepPanel * kSweepRows] = {};
      for (int64_t part = 0; part < rows; part += kPart) {
        const int64_t count = smaller(kPart, rows - part);
        for (int64_t panel = 0; panel < panels; ++panel) {
          const float* factor = factors + (panel * rows + part) * kSweepPanel;
          float* place = values + panel * kSweepPanel * kSweepRows;
          const int64_t width = smaller(kSweepPanel, last - first - panel * kSweepPanel) * kSweepRows;
          if (width == kSweepPanel * kSweepRows) {
            feed_panel(place, factor, history + part * kSweepRows, count);
            continue;
          }
          // The columns behind the last one belong to somebody else.
          for (int64_t i = 0; i < width; ++i) edge[i] = place[i];
          feed_panel(edge, factor, history + part * kSweepRows, count);
          for (int64_t i = 0; i < width; ++i) place[i] = edge[i];
        }
      }
    });
  }
}

}  // namespace bw::BW_ISA
