#include "core/kmeans.h"

#include "bindings/library.h"
#include "bindings/spans.h"

namespace nb = nanobind;

namespace bw {
namespace {

void run(const Library& self, int64_t lines, int64_t count, int64_t cells, int64_t levels, int steps, int swaps,
         Span values, Span mass, Span moment, Span places, Span centres, int threads) {
  require(lines >= 0 && count >= 1 && count <= (int64_t{1} << 40), "there are no values");
  require(levels >= 2 && levels <= 256 && cells >= 1 && cells <= (1 << 20), "tables have 2 to 256 levels");
  require(steps >= 0 && swaps >= 0, "steps and swaps are counts");
  Lines all;
  all.lines = lines;
  all.count = count;
  all.cells = cells;
  all.levels = levels;
  all.steps = steps;
  all.swaps = swaps;
  all.values = elements<const double>(values, product(lines, count), "values");
  all.mass = elements<const double>(mass, product(lines, count + 1), "mass");
  all.moment = elements<const double>(moment, product(lines, count + 1), "moment");
  all.places = elements<const int64_t>(places, product(lines, cells + 1), "places");
  for (int64_t i = 0; i < lines * (cells + 1); ++i)
    require(all.places[i] >= 0 && all.places[i] <= count, "a place lies outside of its line");
  auto* target = elements<float>(centres, product(lines, levels), "centres");
  checked_threads(threads);
  nb::gil_scoped_release release;
  self.kernels->kmeans(all, target, threads);
}

}  // namespace

void bind_kmeans(LibraryClass& library) { library.def("kmeans", run); }

}  // namespace bw
