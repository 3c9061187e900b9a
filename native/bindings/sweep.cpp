#include "core/descent.h"
#include "core/sweep.h"

#include <vector>

#include "bindings/library.h"
#include "bindings/spans.h"

namespace nb = nanobind;

namespace bw {
namespace {

constexpr int64_t kMost = int64_t{1} << 31;

void check_order(const int64_t* order, int64_t in) {
  std::vector<bool> seen(static_cast<size_t>(in));
  for (int64_t k = 0; k < in; ++k) {
    require(order[k] >= 0 && order[k] < in && !seen[order[k]], "the order of the columns names one twice or none");
    seen[order[k]] = true;
  }
}

Sweep make_sweep(int64_t out, int64_t in, Span upper, Span carry, Span order, Span target, Span history) {
  require(out >= 1 && in >= 1 && out <= kMost && in <= kMost, "the weight has a wrong shape");
  Sweep sweep;
  sweep.out = out;
  sweep.in = in;
  sweep.upper = elements<const float>(upper, product(in, in), "upper");
  if (given(carry)) sweep.carry = elements<const float>(carry, product(in, in), "carry");
  sweep.order = elements<const int64_t>(order, in, "order");
  check_order(sweep.order, in);
  const int64_t places = product(product(sweep.tiles(), in), kSweepRows);
  sweep.target = elements<float>(target, places, "target");
  sweep.history = elements<float>(history, product(places, sweep.feeds()), "history");
  return sweep;
}

struct CheckedRounding {
  Rounding rounding;
  int64_t in;
  int64_t tiles;
};

CheckedRounding make_rounding(int64_t tiles, int64_t in, int kind, int64_t parameters, Span parameter, Span scale,
                              Span zero, float low, float high, int count, Span table, Span borders, Span codes) {
  require(tiles >= 1 && in >= 1 && tiles <= kMost && in <= kMost, "the weight has a wrong shape");
  require(kind >= 0 && kind <= 2, "the rounding is 0 (affine), 1 (levels) or 2 (a table for every row)");
  require(parameters >= 1 && parameters <= kMost, "there is no set of parameters");
  Rounding rounding;
  rounding.kind = static_cast<Rounding::Kind>(kind);
  rounding.parameters = parameters;
  rounding.parameter = elements<const int32_t>(parameter, in, "parameter");
  for (int64_t k = 0; k < in; ++k)
    require(rounding.parameter[k] >= 0 && rounding.parameter[k] < parameters, "a column has no set of parameters");
  const int64_t rows = product(parameters, product(tiles, kSweepRows));
  if (kind != Rounding::row_table) rounding.scale = elements<const float>(scale, rows, "scale");
  if (kind == Rounding::affine) {
    require(high >= low && high - low <= 255, "codes have at most 8 bits");
    rounding.low = low;
    rounding.high = high;
    if (given(zero)) rounding.zero = elements<const float>(zero, rows, "zero");
    return {rounding, in, tiles};
  }
  require(count >= 1 && count <= 256, "a table has 1 to 256 levels");
  rounding.count = count;
  const int64_t tables = kind == Rounding::levels ? 1 : rows;
  rounding.table = elements<const float>(table, product(tables, count), "table");
  rounding.borders = elements<const float>(borders, product(tables, count - 1), "borders");
  if (kind == Rounding::levels) rounding.codes = elements<const uint8_t>(codes, 2 * count, "codes");
  return {rounding, in, tiles};
}

Columns columns_of(const Sweep& sweep, int64_t first, int64_t count, Span x) {
  require(first >= 0 && count >= 0 && first <= sweep.in - count, "the columns are not in the weight");
  return {first, count, elements<float>(x, product(product(sweep.tiles(), count), kSweepRows), "x")};
}

void check_part(const Columns& x, int64_t first, int64_t last, int64_t most) {
  require(first >= x.first && first <= last && last <= x.first + x.count, "the columns are not in x");
  require(last - first <= most, "too many columns for one call");
}

int64_t factors_of(const Sweep& sweep, int64_t before, int64_t columns) {
  const int64_t panels = (columns + kSweepPanel - 1) / kSweepPanel;
  return product(product(panels, kSweepPanel), before * sweep.feeds());
}

void load(const Library& self, const Sweep& sweep, Span w, int threads) {
  const auto* source = elements<const float>(w, product(sweep.out, sweep.in), "w");
  checked_threads(threads);
  nb::gil_scoped_release release;
  self.kernels->sweep_load(sweep, source, threads);
}

void values(const Library& self, const Sweep& sweep, Span values, int threads) {
  auto* place = elements<float>(values, product(sweep.out, sweep.in), "values");
  checked_threads(threads);
  nb::gil_scoped_release release;
  self.kernels->sweep_values(sweep, place, threads);
}

void begin(const Library& self, const Sweep& sweep, int64_t start, int64_t count, Span x, int threads) {
  const Columns columns = columns_of(sweep, start, count, x);
  checked_threads(threads);
  nb::gil_scoped_release release;
  self.kernels->sweep_begin(sweep, columns, threads);
}

void feed(const Library& self, const Sweep& sweep, int64_t start, int64_t count, Span x, int64_t from, int64_t to,
          int64_t first, int64_t last, int threads) {
  const Columns columns = columns_of(sweep, start, count, x);
  check_part(columns, first, last, kMost);
  require(from >= 0 && from <= to && to <= first, "columns take in what earlier ones feed back");
  checked_threads(threads);
  nb::gil_scoped_release release;
  const auto factors = scratch<float>(factors_of(sweep, to - from < kSweepRun ? to - from : kSweepRun, last - first));
  self.kernels->sweep_feed(sweep, columns, from, to, first, last, factors.get(), threads);
}

void round_columns(const Library& self, const Sweep& sweep, int64_t start, int64_t count, Span x, int64_t first,
                   int64_t last, const CheckedRounding& checked, Span codes, int threads) {
  const Columns columns = columns_of(sweep, start, count, x);
  check_part(columns, first, last, kSweepPiece);
  require(checked.in == sweep.in && checked.tiles == sweep.tiles(), "the rounding belongs to another weight");
  auto* target = elements<uint8_t>(codes, product(sweep.out, sweep.in), "codes");
  checked_threads(threads);
  nb::gil_scoped_release release;
  const auto factors = scratch<float>(factors_of(sweep, last - first, last - first));
  self.kernels->sweep_round(sweep, columns, first, last, checked.rounding, target, factors.get(), threads);
}

void look(const Library& self, const Sweep& sweep, int64_t start, int64_t count, Span x, int64_t first, int64_t last,
          Span current, int64_t stride, int64_t offset, int threads) {
  const Columns columns = columns_of(sweep, start, count, x);
  check_part(columns, first, last, kSweepPiece);
  require(offset >= 0 && stride >= 0 && stride <= kMost && offset <= stride - (last - first), "a row is too short");
  auto* place = elements<float>(current, product(sweep.out, stride), "current");
  checked_threads(threads);
  nb::gil_scoped_release release;
  const auto factors = scratch<float>(factors_of(sweep, last - first, last - first));
  self.kernels->sweep_look(sweep, columns, first, last, place + offset, stride, factors.get(), threads);
}

Descent make_descent(int64_t out, int64_t in, Span moments, Span inverse, Span weight, Span value, Span error) {
  require(out >= 1 && in >= 1 && out <= kMost && in <= kMost, "the weight has a wrong shape");
  Descent descent;
  descent.out = out;
  descent.in = in;
  descent.moments = elements<const float>(moments, product(in, in), "moments");
  descent.inverse = elements<const float>(inverse, in, "inverse");
  const int64_t places = product(product(descent.tiles(), in), kSweepRows);
  descent.weight = elements<const float>(weight, places, "weight");
  descent.value = elements<float>(value, places, "value");
  descent.error = elements<float>(error, places, "error");
  return descent;
}

// Returns whether a value changed.
bool descend(const Library& self, const Descent& descent, int64_t first, int64_t last, const CheckedRounding* checked,
             int threads) {
  require(first >= 0 && first < last && last <= descent.in && last - first <= kSweepPiece, "no columns of the weight");
  require(!checked || (checked->in == descent.in && checked->tiles == descent.tiles()),
          "the rounding belongs to another weight");
  checked_threads(threads);
  nb::gil_scoped_release release;
  const int64_t count = last - first, panels = (count + kSweepPanel - 1) / kSweepPanel;
  const int64_t before = descent.in < kSweepRun ? descent.in : kSweepRun;
  const auto slopes = scratch<float>(product(descent.tiles() * kSweepRows, count));
  const auto factors = scratch<float>(panels * kSweepPanel * (before > count ? before : count));
  std::vector<uint8_t> moved(static_cast<size_t>(descent.tiles()));
  self.kernels->descend(descent, first, last, checked ? &checked->rounding : nullptr, slopes.get(), factors.get(),
                        moved.data(), threads);
  for (uint8_t tile : moved)
    if (tile) return true;
  return false;
}

}  // namespace

void bind_sweep(nb::module_& module, LibraryClass& library) {
  nb::class_<Sweep>(module, "Sweep", "A view of a sweep's buffers; the caller keeps them alive.")
      .def("__init__",
           [](Sweep* self, int64_t out, int64_t in, Span upper, Span carry, Span order, Span target, Span history) {
             new (self) Sweep(make_sweep(out, in, upper, carry, order, target, history));
           });
  nb::class_<CheckedRounding>(module, "Rounding", "A view of a rounding rule; the caller keeps the buffers alive.")
      .def("__init__",
           [](CheckedRounding* self, int64_t tiles, int64_t in, int kind, int64_t parameters, Span parameter,
              Span scale, Span zero, float low, float high, int count, Span table, Span borders, Span codes) {
             new (self) CheckedRounding(make_rounding(tiles, in, kind, parameters, parameter, scale, zero, low, high,
                                                      count, table, borders, codes));
           });
  nb::class_<Descent>(module, "Descent", "A view of a descent's buffers; the caller keeps them alive.")
      .def("__init__",
           [](Descent* self, int64_t out, int64_t in, Span moments, Span inverse, Span weight, Span value, Span error) {
             new (self) Descent(make_descent(out, in, moments, inverse, weight, value, error));
           });
  module.attr("SWEEP_ROWS") = kSweepRows;
  module.attr("SWEEP_PIECE") = kSweepPiece;
  library.def("sweep_load", load);
  library.def("sweep_values", values);
  library.def("sweep_begin", begin);
  library.def("sweep_feed", feed);
  library.def("sweep_round", round_columns);
  library.def("sweep_look", look);
  library.def("descend", descend, nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg());
}

}  // namespace bw
