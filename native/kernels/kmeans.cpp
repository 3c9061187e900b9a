// Weighted k-means of sorted values. In one dimension clusters are intervals, and what one of them explains of the
// second moment follows from two prefix sums. Everything in fp64, without fused operations: all instruction sets agree.
#include "kernels/kmeans.h"

#include <cstring>

#include "core/pool.h"
#include "core/scratch.h"

namespace bw::BW_ISA {
namespace {

constexpr double kTiny = 1e-300;

double at_least(double value, double least) { return value < least ? least : value; }

// One line and the memory of its search.
class Line {
 public:
  Line(const Lines& all, int64_t line, double* memory)
      : all_(all),
        values_(all.values + line * all.count),
        mass_(all.mass + line * (all.count + 1)),
        moment_(all.moment + line * (all.count + 1)),
        places_(all.places + line * (all.cells + 1)),
        best_(memory),
        other_(best_ + all.levels),
        held_(other_ + all.levels),
        carried_(held_ + all.levels),
        gain_(carried_ + all.levels),
        next_(gain_ + all.cells + 1) {}

  static int64_t doubles(const Lines& all) { return 4 * all.levels + 2 * (all.cells + 1); }

  void solve(int32_t* chosen, float* centres) {
    first_centres(chosen);
    double explained = descend(best_);
    for (int swap = 0; swap < all_.swaps; ++swap) {
      split_and_merge();
      const double tried = descend(other_);
      if (!(tried > explained)) break;  // the same start would give the same end again
      explained = tried;
      std::memcpy(best_, other_, sizeof(double) * static_cast<size_t>(all_.levels));
    }
    for (int64_t c = 0; c < all_.levels; ++c) centres[c] = static_cast<float>(best_[c]);
  }

 private:
  // What one cluster between two places of the grid explains.
  double gain(int64_t a, int64_t b) const {
    const double held = mass_[places_[b]] - mass_[places_[a]];
    if (held <= 0) return 0;
    const double moment = moment_[places_[b]] - moment_[places_[a]];
    return moment * moment / at_least(held, kTiny);
  }

  // next_[b] = max over a of gain_[a] + gain(a, b) for b in first .. last, where the best a lies in low .. high: it
  // never falls when b grows.
  void best_before(int64_t first, int64_t last, int64_t low, int64_t high, int32_t* before) {
    while (first <= last) {
      const int64_t middle = (first + last) / 2;
      int64_t best = low;
      double most = -1;
      for (int64_t a = low; a <= high && a <= middle; ++a) {
        const double value = gain_[a] + gain(a, middle);
        if (value > most) most = value, best = a;
      }
      next_[middle] = most;
      before[middle] = static_cast<int32_t>(best);
      best_before(first, middle - 1, low, best, before);
      first = middle + 1;
      low = best;
    }
  }

  // The best clusters with borders on the grid, by dynamic programming; an empty one gets the value at its place.
  void first_centres(int32_t* chosen) {
    const int64_t size = all_.cells + 1;
    for (int64_t b = 0; b < size; ++b) gain_[b] = gain(0, b);
    for (int64_t m = 1; m < all_.levels; ++m) {
      best_before(0, size - 1, 0, size - 1, chosen + (m - 1) * size);
      double* spare = gain_;
      gain_ = next_;
      next_ = spare;
    }
    int64_t stop = size - 1;
    for (int64_t m = all_.levels - 1; m >= 0; --m) {
      const int64_t start = m ? chosen[(m - 1) * size + stop] : 0;
      const int64_t from = places_[start], to = places_[stop];
      const double held = mass_[to] - mass_[from];
      best_[m] = held > 0 ? (moment_[to] - moment_[from]) / at_least(held, kTiny) : values_[to > 0 ? to - 1 : 0];
      stop = start;
    }
    sort(best_);
  }

  // Few values out of order at most.
  void sort(double* centres) const {
    for (int64_t c = 1; c < all_.levels; ++c) {
      const double value = centres[c];
      int64_t place = c;
      for (; place > 0 && centres[place - 1] > value; --place) centres[place] = centres[place - 1];
      centres[place] = value;
    }
  }

  // How many values are not above `limit`.
  int64_t not_above(double limit) const {
    int64_t low = 0, high = all_.count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (values_[middle] <= limit) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  // Mass and moment of the values nearest to each centre.
  void clusters(const double* centres) {
    int64_t from = 0;
    for (int64_t c = 0; c < all_.levels; ++c) {
      const int64_t to = c + 1 < all_.levels ? not_above((centres[c + 1] + centres[c]) / 2) : all_.count;
      held_[c] = mass_[to] - mass_[from];
      carried_[c] = moment_[to] - moment_[from];
      from = to;
    }
  }

  // Lloyd's algorithm; returns what the centres explain.
  double descend(double* centres) {
    for (int step = 0; step < all_.steps; ++step) {
      clusters(centres);
      bool moved = false;
      for (int64_t c = 0; c < all_.levels; ++c) {
        // A cluster without mass keeps its centre.
        const double mean = held_[c] > 0 ? carried_[c] / at_least(held_[c], kTiny) : centres[c];
        moved |= mean != centres[c];
        centres[c] = mean;
      }
      if (!moved) break;
      sort(centres);
    }
    clusters(centres);
    double explained = 0;
    for (int64_t c = 0; c < all_.levels; ++c)
      explained += 2 * centres[c] * carried_[c] - centres[c] * centres[c] * held_[c];
    return explained;
  }

  double edge(int64_t c) const {
    if (c == 0) return values_[0];
    if (c == all_.levels) return values_[all_.count - 1];
    return (best_[c] + best_[c - 1]) / 2;
  }

  // other_: the two neighbours of best_ whose merger costs least are merged, the costliest other cluster is split.
  void split_and_merge() {
    clusters(best_);
    int64_t first = 0;
    double least = 0;
    for (int64_t c = 0; c + 1 < all_.levels; ++c) {
      const double gap = best_[c + 1] - best_[c];
      const double cost = held_[c] * held_[c + 1] / at_least(held_[c] + held_[c + 1], kTiny) * (gap * gap);
      if (c == 0 || cost < least) least = cost, first = c;
    }
    int64_t widest = -1;
    double most = 0;
    for (int64_t c = 0; c < all_.levels; ++c) {
      if (c == first || c == first + 1) continue;
      const double width = edge(c + 1) - edge(c), cost = held_[c] * (width * width);
      if (widest < 0 || cost > most) most = cost, widest = c;
    }
    std::memcpy(other_, best_, sizeof(double) * static_cast<size_t>(all_.levels));
    if (widest < 0) return;
    const double masses = held_[first] + held_[first + 1];
    const double moments = best_[first] * held_[first] + best_[first + 1] * held_[first + 1];
    const double spread = (edge(widest + 1) - edge(widest)) / 4;
    if (masses > 0) other_[first] = moments / at_least(masses, kTiny);
    other_[first + 1] = best_[widest] + spread;
    other_[widest] = best_[widest] - spread;
    sort(other_);
  }

  const Lines& all_;
  const double* values_;
  const double* mass_;
  const double* moment_;
  const int64_t* places_;
  double* best_;
  double* other_;
  double* held_;
  double* carried_;
  double* gain_;
  double* next_;
};

}  // namespace

void kmeans(const Lines& lines, float* centres, int threads) {
  parallel_for(threads, lines.lines, [&](int64_t line, int) {
    thread_local Scratch<double> doubles;
    thread_local Scratch<int32_t> chosen;
    double* memory = doubles.get(static_cast<size_t>(Line::doubles(lines)));
    int32_t* before = chosen.get(static_cast<size_t>((lines.levels - 1) * (lines.cells + 1) + 1));
    Line(lines, line, memory).solve(before, centres + line * lines.levels);
  });
}

}  // namespace bw::BW_ISA
