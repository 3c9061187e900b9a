// Products in every way beside the plain one: coded activations, lookups, bf16, ternary in base 3, sums of terms.
#include "bindings/checks.h"
#include "bindings/library.h"
#include "bindings/workspace.h"
#include "core/pool.h"
#include "core/variants.h"
#include "core/vectors.h"

#include <nanobind/stl/tuple.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <tuple>
#include <vector>

namespace nb = nanobind;

namespace bw {
namespace {

using Span = std::tuple<uintptr_t, int64_t>;

Buffer buffer(Span span) { return {std::get<0>(span), std::get<1>(span)}; }
bool given(Span span) { return std::get<0>(span) != 0; }

// Which kernel multiplies.
enum class Way : int {
  exact = 0,
  int8 = 1,
  lookup = 2,
  bf16 = 3,
  ternary = 4,
  bits = 5,
  sums = 6,
  pairs = 7,
  lattice = 10,
  lattice_exact = 11,
  additive = 12
};

Float float_type(int code) {
  require(code >= 0 && code <= 2, "the float type is 0 (fp32), 1 (fp16) or 2 (bf16)");
  return static_cast<Float>(code);
}

// A pointer to `count` floats of a type.
void* floats(Span span, Float type, int64_t count, const char* name) {
  if (type == Float::f32) return buffer(span).as<float>(product(count, 4), name);
  return buffer(span).as<uint16_t>(product(count, 2), name);
}

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

TernaryWeight make_ternary(int64_t out, int64_t in, Span codes, Span scale, int scale_type) {
  require(out >= 1 && in >= 1 && out <= (int64_t{1} << 31) && in <= (int64_t{1} << 31), "the weight has a wrong shape");
  TernaryWeight weight;
  weight.out = out;
  weight.in = in;
  weight.scale_type = float_type(scale_type);
  weight.codes = buffer(codes).as<const uint8_t>(product(weight.tiles() * kVector, weight.vectors()), "codes");
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

Terms make_terms(int64_t out, int64_t in, Span starts, Span columns, Span values, int64_t count, int64_t rank,
                 Span left, Span right, int64_t shifts, Span sums) {
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
  return terms;
}

Coding make_coding(bool is_given, bool asymmetric, int64_t run, float low, float high, float steps, float clip,
                   float scale, float zero) {
  require(run >= 1 && low < high && high - low <= 255 && low >= -128 && high <= 255, "activations have up to 8 bits");
  require(asymmetric ? low == 0 : high <= 127, "activations with a zero point start at 0");
  require(steps > 0 && clip > 0, "a range has steps");
  return {is_given, asymmetric, run, low, high, steps, clip, scale, zero};
}

struct Call {
  const Kernels& kernels;
  Way way;
  const Weight* weight;
  const TernaryWeight* ternary;
  const ByteTables* tables;
  HalfTable levels;
  const VectorTables* vectors;
  const int32_t* counts;
  const Coding* coding;
  const void* x;
  Float type;
  int64_t rows, in, out;
  int threads;

  int block() const { return ternary ? TernaryWeight::kBlock : weight ? weight->block : 16; }
  bool additive() const { return vectors && vectors->additive.out; }
  int64_t blocks() const { return (in + block() - 1) / block(); }
};

// Activations in 8 bits; `shift` and `values` are for terms, or null.
QuantizedRows quantized(const Call& call, Workspace& workspace, float* shift, float* values) {
  const int64_t places = product(call.blocks(), call.rows);
  int8_t* codes = workspace.take<int8_t>(product(places, call.block()));
  float* scale = workspace.take<float>(places);
  int32_t* sums = workspace.take<int32_t>(places);
  if (call.coding)
    call.kernels.code_rows(*call.coding, call.x, call.type, call.rows, call.in, call.block(), codes, scale, sums, shift,
                           values, call.threads);
  else
    call.kernels.quantize_rows(call.x, call.type, call.rows, call.in, call.block(), codes, scale, sums, call.threads);
  if (call.way == Way::lattice) exchange_spans(codes, product(places, call.block()));
  return {call.rows, call.block(), call.blocks(), codes, scale, sums};
}

void multiply(const Call& call, Workspace& workspace, float* shift, float* values, const Output& output) {
  const int64_t places = product(call.blocks(), call.rows), count = product(places, call.block());
  if (call.way == Way::additive)
    return call.kernels.additive_float(call.vectors->additive, call.x, call.type, call.rows, output, call.threads);
  if (call.way == Way::lattice_exact) {
    float* cut = workspace.take<float>(count);
    float* sums = workspace.take<float>(places);
    call.kernels.gather_rows(call.x, call.type, call.rows, call.in, call.block(), cut, sums, call.threads);
    exchange_spans(cut, count);
    const FloatRows rows{call.rows, call.block(), call.blocks(), cut, sums};
    return call.kernels.lattice_float(*call.weight, call.vectors->lattice, rows, output, call.threads);
  }
  if (call.way == Way::exact) {
    float* cut = workspace.take<float>(count);
    float* sums = workspace.take<float>(places);
    call.kernels.gather_rows(call.x, call.type, call.rows, call.in, call.block(), cut, sums, call.threads);
    call.kernels.linear_float(*call.weight, {call.rows, call.block(), call.blocks(), cut, sums}, output, call.threads);
    return;
  }
  if (call.way == Way::bf16) {
    uint16_t* cut = workspace.take<uint16_t>(count);
    float* sums = workspace.take<float>(places);
    call.kernels.gather_halves(call.x, call.type, call.rows, call.in, call.block(), cut, sums, call.threads);
    call.kernels.linear_bf16(*call.weight, call.levels, {call.rows, call.block(), call.blocks(), cut, sums}, output,
                             call.threads);
    return;
  }
  const QuantizedRows rows = quantized(call, workspace, shift, values);
  if (call.way == Way::ternary) return call.kernels.linear_ternary(*call.ternary, rows, output, call.threads);
  if (call.way == Way::lattice)
    return call.kernels.lattice_int8(*call.weight, call.vectors->lattice, rows, output, call.threads);
  if (call.way == Way::lookup)
    return call.kernels.linear_lookup(*call.weight, *call.tables, rows, output, call.threads);
  if (call.way == Way::sums || call.way == Way::pairs)
    return call.kernels.linear_sums(*call.weight, rows, call.way == Way::pairs, output, call.threads);
  if (call.way == Way::bits) {
    const int values = static_cast<int>(call.coding->high - call.coding->low);
    const int lowest = static_cast<int>(call.coding->low) - (call.coding->high > 127 ? 128 : 0);
    return call.kernels.linear_bits(*call.weight, rows, std::bit_width(static_cast<unsigned>(values)), lowest,
                                    call.counts, output, call.threads);
  }
  call.kernels.linear_int8(*call.weight, rows, output, call.threads);
}

void check(const Call& call) {
  const bool points = call.way == Way::lattice || call.way == Way::lattice_exact;
  require((call.way == Way::additive) == call.additive() && points == (call.vectors && !call.additive()),
          "the tables of vectors do not fit the kernel");
  require((call.way == Way::ternary) == (call.ternary != nullptr), "the weight does not fit the kernel");
  require(call.way != Way::lookup || (call.tables && call.tables->serve(*call.weight)),
          "lookups need tables, those of rows are of the same weight");
  require(call.way != Way::int8 || call.weight->levels == Levels::affine, "integer products serve affine weights");
  require(!points || (call.weight->bits == call.vectors->bits && call.weight->block % 32 == 0),
          "the tables are those of other points");
  require(call.way != Way::bf16 || call.kernels.linear_bf16, "this instruction set has no products of bf16");
  const bool sums = call.way == Way::sums || call.way == Way::pairs;
  require(!sums || (call.weight->out % 64 == 0 && call.weight->block <= 128 && call.weight->block >= 32 &&
                    (call.way == Way::sums ? call.weight->bits <= 4 : call.weight->bits == 2)),
          "tables of sums serve multiples of 64 rows, codes of up to 4 bits and blocks of 32 to 128 inputs");
  require(call.way != Way::bits || (call.coding && call.coding->run >= call.in && call.weight->block >= 32),
          "products of bits need activations with one code and one scale for a row");
}

void check_coding(const Call& call, const Terms* terms) {
  require(
      call.way != Way::exact && call.way != Way::bf16 && call.way != Way::lattice_exact && call.way != Way::additive,
      "coded activations go into integer products");
  const int64_t run = call.coding->run;
  require(run >= call.in || run % call.block() == 0, "a scale of activations serves whole blocks");
  const int64_t runs = (call.in + run - 1) / run;
  require(!call.coding->asymmetric || (terms && terms->shifts == runs), "zero points need the sums of the weight");
}

Call make_call(const Library& self, int way, const Weight* weight, const TernaryWeight* ternary,
               const ByteTables* tables, const VectorTables* vectors, Span levels, const Terms* terms,
               const Coding* coding, Float type, int threads) {
  require((way >= 0 && way <= 7) || (way >= 10 && way <= 12), "no such kernel");
  Call call{*self.kernels,
            static_cast<Way>(way),
            weight,
            ternary,
            tables,
            {},
            vectors,
            nullptr,
            coding,
            nullptr,
            type,
            0,
            0,
            0,
            checked_threads(threads)};
  require(int{ternary != nullptr} + int{weight != nullptr} + int{call.additive()} == 1, "a product needs one weight");
  call.in = ternary ? ternary->in : weight ? weight->in : vectors->additive.in;
  call.out = ternary ? ternary->out : weight ? weight->out : vectors->additive.out;
  require(!terms || (terms->out == call.out && terms->in == call.in), "the terms belong to another weight");
  check(call);
  if (coding) check_coding(call, terms);
  if (call.way == Way::bf16)
    call.levels.levels = buffer(levels).as<const uint16_t>(int64_t{2} << weight->bits, "levels");
  if (call.way == Way::bits)
    call.counts = buffer(levels).as<const int32_t>(product(weight->tiles() * kRows, 4 * weight->groups), "counts");
  return call;
}

// The product and its terms.
void add_up(const Call& call, const Terms* terms, const Output& output) {
  Workspace workspace;
  if (!terms) return multiply(call, workspace, nullptr, nullptr, output);
  float* main = workspace.take<float>(product(call.rows, call.out));
  float* shift =
      call.coding && call.coding->asymmetric ? workspace.take<float>(product(call.rows, terms->shifts)) : nullptr;
  const bool reads = terms->starts || terms->rank;
  const float* values = call.type == Float::f32 ? static_cast<const float*>(call.x) : nullptr;
  float* taken = reads && (call.coding || !values) ? workspace.take<float>(product(call.rows, call.in)) : nullptr;
  if (taken && !call.coding) call.kernels.to_floats(call.x, call.type, call.rows * call.in, taken);
  multiply(call, workspace, shift, call.coding ? taken : nullptr, {main, Float::f32, nullptr});
  Terms all = *terms;
  all.shift = shift;
  if (!shift) all.shifts = 0;
  call.kernels.add_terms(all, taken ? taken : values, call.rows, call.in, call.out, main, output, call.threads);
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
      .def("__init__", [](TernaryWeight* self, int64_t out, int64_t in, Span codes, Span scale, int scale_type) {
        new (self) TernaryWeight(make_ternary(out, in, codes, scale, scale_type));
      });
  nb::class_<Terms>(module, "Terms")
      .def("__init__", [](Terms* self, int64_t out, int64_t in, Span starts, Span columns, Span values, int64_t count,
                          int64_t rank, Span left, Span right, int64_t shifts, Span sums) {
        new (self) Terms(make_terms(out, in, starts, columns, values, count, rank, left, right, shifts, sums));
      });
  nb::class_<Coding>(module, "Coding")
      .def("__init__", [](Coding* self, bool is_given, bool asymmetric, int64_t run, float low, float high, float steps,
                          float clip, float scale, float zero) {
        new (self) Coding(make_coding(is_given, asymmetric, run, low, high, steps, clip, scale, zero));
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
