// Products in every way beside the plain one: coded activations, lookups, bf16, ternary in base 3, sums of terms.
#include "bindings/call.h"
#include "core/pool.h"
#include "core/vectors.h"

#include <cmath>

namespace nb = nanobind;

namespace bw {
namespace {

ByteTables make_tables(const Weight& weight, Span low, Span high, bool by_row, int offset, float step) {
  require(weight.bits >= 2 && weight.bits <= 4, "byte tables serve codes of 2 to 4 bits");
  require(!by_row || (given(high) && weight.block >= 16), "tables for every row have two halves");
  require(offset >= 0 && offset < 1 << 14 && std::isfinite(step), "byte tables have an offset below 16384");
  ByteTables tables;
  const int64_t bytes = by_row ? product(weight.tiles() * weight.groups, 4 * kVector) : 16;
  tables.low = buffer(low).as<const uint8_t>(bytes, "low tables");
  if (given(high)) tables.high = buffer(high).as<const uint8_t>(bytes, "high tables");
  tables.by_row = by_row;
  tables.offset = offset;
  tables.step = step;
  tables.tiles = weight.tiles();
  tables.groups = weight.groups;
  return tables;
}

TernaryWeight make_ternary(int64_t out, int64_t in, Span codes, Span scale, int scale_type, bool triples) {
  require(out >= 1 && in >= 1 && out <= (int64_t{1} << 31) && in <= (int64_t{1} << 31), "the weight has a wrong shape");
  TernaryWeight weight;
  weight.out = out;
  weight.in = in;
  weight.scale_type = float_type(scale_type);
  weight.triples = triples;
  const int64_t bytes = triples ? product(weight.talls() * TernaryWeight::kUnitBytes, weight.units())
                                : product(weight.tiles() * kVector, weight.vectors());
  weight.codes = buffer(codes).as<const uint8_t>(bytes, "codes");
  weight.scale = floats(scale, weight.scale_type, weight.tiles() * kRows, "scale");
  return weight;
}

void check_columns(const int32_t* columns, const int32_t* starts, int64_t out, int64_t in, int64_t count) {
  require(starts[0] == 0 && starts[out] == count, "row starts do not fit the single weights");
  for (int64_t o = 0; o < out; ++o) require(starts[o] <= starts[o + 1], "row starts fall");
  uint32_t most = 0;
  for (int64_t k = 0; k < count; ++k) {
    const uint32_t column = static_cast<uint32_t>(columns[k]);
    most = column > most ? column : most;
  }
  require(count == 0 || static_cast<int64_t>(most) < in, "a single weight lies outside of the matrix");
}

// Chosen blocks of every row.
void choose_blocks(Terms& terms, int64_t out, const Weight& chosen, Span which) {
  require(chosen.out == out && chosen.bits == 2 && chosen.levels == Levels::affine && chosen.blocks_per_scale == 1 &&
              chosen.in == chosen.blocks * chosen.block,
          "chosen blocks have codes of 2 bits and a scale each");
  const int64_t count = product(chosen.tiles() * kRows, chosen.blocks);
  terms.chosen = chosen;
  terms.which = buffer(which).as<const int32_t>(product(count, 4), "which");
  int32_t least = 0;
  for (int64_t i = 0; i < count; ++i) {
    least = terms.which[i] < least ? terms.which[i] : least;
    terms.most = terms.which[i] > terms.most ? terms.which[i] : terms.most;
  }
  require(least == 0, "chosen blocks have numbers from 0 on");
}

Terms make_terms(int64_t out, int64_t in, Span starts, Span columns, Span values, int64_t count, int64_t rank,
                 Span left, Span right, int64_t shifts, Span sums, const Weight* chosen, Span which) {
  require(out >= 1 && in >= 1 && count >= 0 && count < (int64_t{1} << 31) && rank >= 0 && shifts >= 0,
          "the terms have a wrong shape");
  require(out <= int64_t{1} << 31 && in <= int64_t{1} << 31, "the terms have a wrong shape");
  const int64_t rows = product((out + kRows - 1) / kRows, kRows);
  Terms terms;
  terms.out = out;
  terms.in = in;
  if (given(starts)) {
    terms.starts = buffer(starts).as<const int32_t>(product(out + 1, 4), "starts");
    terms.columns = buffer(columns).as<const int32_t>(product(count, 4), "columns");
    terms.values = buffer(values).as<const float>(product(count, 4), "values");
    check_columns(terms.columns, terms.starts, out, in, count);
  }
  terms.rank = rank;
  terms.left = buffer(left).as<const float>(product(product(rows, rank), 4), "left");
  terms.right = buffer(right).as<const float>(product(product(rank, in), 4), "right");
  terms.shifts = shifts;
  terms.sums = buffer(sums).as<const float>(product(product(rows, shifts), 4), "sums");
  if (chosen) choose_blocks(terms, out, *chosen, which);
  return terms;
}

Coding make_coding(bool is_given, bool asymmetric, bool bipolar, int64_t run, float low, float high, float steps,
                   float clip, float scale, float zero, int64_t wide) {
  require(run >= 1 && low < high && high - low <= 255 && low >= -128 && high <= 255, "activations have up to 8 bits");
  require(asymmetric ? low == 0 : high <= 127, "activations with a zero point start at 0");
  require(!bipolar || (!asymmetric && high <= 127), "bipolar codes have no zero point");
  require(steps > 0 && clip > 0, "a range has steps");
  require(wide >= -1, "wide inputs start within the row");
  return {is_given, asymmetric, bipolar, run, low, high, steps, clip, scale, zero, wide};
}

void run(const Library& self, int way, const Weight* weight, const TernaryWeight* ternary, const ByteTables* tables,
         const VectorTables* vectors, Span levels, const Terms* terms, const Coding* coding, Span x, int type_code,
         int64_t rows, Span y, Span bias, int threads) {
  const Float type = float_type(type_code);
  Call call = make_call(self, way, weight, ternary, tables, vectors, levels, terms, coding, type, threads);
  call.rows = rows;
  call.x = floats(x, type, product(rows, call.in), "x");
  Output output;
  output.type = type;
  output.y = floats(y, type, product(rows, call.out), "y");
  if (given(bias)) output.bias = buffer(bias).as<const float>(4 * call.out, "bias");
  if (rows == 0) return;
  nb::gil_scoped_release release;
  add_up(call, terms, output);
}

// Positions of an image that one chunk of work takes.
constexpr int64_t kPositions = 64;

using Pair = std::tuple<int64_t, int64_t>;

Windows make_windows(const Call& call, std::tuple<int64_t, int64_t, int64_t, int64_t> images, int64_t first_channel,
                     Pair kernel, Pair stride, Pair before, Pair dilation, Pair outputs) {
  Windows windows;
  windows.type = call.type;
  std::tie(std::ignore, windows.channels, windows.height, windows.width) = images;
  std::tie(windows.kernel_height, windows.kernel_width) = kernel;
  std::tie(windows.stride_down, windows.stride_right) = stride;
  std::tie(windows.above, windows.left) = before;
  std::tie(windows.dilation_down, windows.dilation_right) = dilation;
  std::tie(windows.out_height, windows.out_width) = outputs;
  windows.first_channel = first_channel;
  const int64_t most = int64_t{1} << 24;
  for (const int64_t size :
       {windows.channels, windows.height, windows.width, windows.kernel_height, windows.kernel_width,
        windows.stride_down, windows.stride_right, windows.dilation_down, windows.dilation_right})
    require(size >= 1 && size <= most, "a convolution has a wrong shape");
  for (const int64_t size : {windows.above, windows.left, windows.out_height, windows.out_width})
    require(size >= 0 && size <= most, "a convolution has a wrong shape");
  const int64_t area = product(windows.kernel_height, windows.kernel_width);
  require(call.in % area == 0, "the kernel's size does not fit the weight");
  windows.count = call.in / area;
  require(first_channel >= 0 && windows.count <= windows.channels && first_channel <= windows.channels - windows.count,
          "the channels do not fit the weight");
  return windows;
}

// One group of a convolution: y[batch][outputs][positions], this group's outputs from `first_output`.
void convolve(const Library& self, int way, const Weight* weight, const TernaryWeight* ternary,
              const ByteTables* tables, const VectorTables* vectors, Span levels, const Terms* terms,
              const Coding* coding, Span x, int type_code, std::tuple<int64_t, int64_t, int64_t, int64_t> images,
              int64_t first_channel, Pair kernel, Pair stride, Pair before, Pair dilation, Pair positions, Span y,
              int64_t outputs, int64_t first_output, Span bias, int threads) {
  const Float type = float_type(type_code);
  Call call = make_call(self, way, weight, ternary, tables, vectors, levels, terms, coding, type, threads);
  Windows windows = make_windows(call, images, first_channel, kernel, stride, before, dilation, positions);
  const int64_t batch = std::get<0>(images), space = windows.positions();
  const int64_t pixels = product(windows.height, windows.width);
  windows.x = floats(x, type, product(product(batch, windows.channels), pixels), "x");
  void* target = floats(y, type, product(product(batch, outputs), space), "y");
  require(first_output >= 0 && call.out <= outputs && first_output <= outputs - call.out, "the outputs do not fit");
  const float* added = given(bias) ? buffer(bias).as<const float>(4 * call.out, "bias") : nullptr;
  if (batch == 0 || space == 0) return;
  nb::gil_scoped_release release;
  const int64_t chunks = (space + kPositions - 1) / kPositions;
  parallel_for(threads, product(batch, chunks), [&](int64_t chunk, int) {
    const int64_t image = chunk / chunks, first = chunk % chunks * kPositions;
    Workspace workspace;
    Call one = call;
    one.threads = 1;
    one.type = Float::f32;
    one.rows = space - first < kPositions ? space - first : kPositions;
    float* rows = workspace.take<float>(one.rows * one.in);
    float* results = workspace.take<float>(one.rows * one.out);
    one.kernels.window_rows(windows, image, first, one.rows, rows);
    one.x = rows;
    add_up(one, terms, {results, Float::f32, added});
    const int64_t place = (image * outputs + first_output) * space + first;
    one.kernels.rows_to_image(results, one.rows, one.out, space, place, type, target);
  });
}

}  // namespace

void bind_product(nb::module_& module, LibraryClass& library) {
  nb::class_<ByteTables>(module, "ByteTables")
      .def("__init__", [](ByteTables* self, const Weight& weight, Span low, Span high, bool by_row, int offset,
                          float step) { new (self) ByteTables(make_tables(weight, low, high, by_row, offset, step)); });
  nb::class_<TernaryWeight>(module, "TernaryWeight")
      .def("__init__",
           [](TernaryWeight* self, int64_t out, int64_t in, Span codes, Span scale, int scale_type, bool triples) {
             new (self) TernaryWeight(make_ternary(out, in, codes, scale, scale_type, triples));
           });
  nb::class_<Terms>(module, "Terms")
      .def(
          "__init__",
          [](Terms* self, int64_t out, int64_t in, Span starts, Span columns, Span values, int64_t count, int64_t rank,
             Span left, Span right, int64_t shifts, Span sums, const Weight* chosen, Span which) {
            new (self) Terms(
                make_terms(out, in, starts, columns, values, count, rank, left, right, shifts, sums, chosen, which));
          },
          nb::arg("out"), nb::arg("in"), nb::arg("starts"), nb::arg("columns"), nb::arg("values"), nb::arg("count"),
          nb::arg("rank"), nb::arg("left"), nb::arg("right"), nb::arg("shifts"), nb::arg("sums"),
          nb::arg("chosen").none(), nb::arg("which"));
  nb::class_<Coding>(module, "Coding")
      .def("__init__", [](Coding* self, bool is_given, bool asymmetric, bool bipolar, int64_t run, float low,
                          float high, float steps, float clip, float scale, float zero, int64_t wide) {
        new (self) Coding(make_coding(is_given, asymmetric, bipolar, run, low, high, steps, clip, scale, zero, wide));
      });
  library.def("convolve", convolve, nb::arg("way"), nb::arg("weight").none(), nb::arg("ternary").none(),
              nb::arg("tables").none(), nb::arg("vectors").none(), nb::arg("levels"), nb::arg("terms").none(),
              nb::arg("coding").none(), nb::arg("x"), nb::arg("type"), nb::arg("images"), nb::arg("first_channel"),
              nb::arg("kernel"), nb::arg("stride"), nb::arg("before"), nb::arg("dilation"), nb::arg("positions"),
              nb::arg("y"), nb::arg("outputs"), nb::arg("first_output"), nb::arg("bias"), nb::arg("threads"));
  library.def_prop_ro("has_bf16", [](const Library& self) { return self.kernels->linear_bf16 != nullptr; });
  library.def("product", run, nb::arg("way"), nb::arg("weight").none(), nb::arg("ternary").none(),
              nb::arg("tables").none(), nb::arg("vectors").none(), nb::arg("levels"), nb::arg("terms").none(),
              nb::arg("coding").none(), nb::arg("x"), nb::arg("type"), nb::arg("rows"), nb::arg("y"), nb::arg("bias"),
              nb::arg("threads"));
}

}  // namespace bw
