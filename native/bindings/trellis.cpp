// Trellis-coded weights: the search for codes, packing, products.
#include "core/trellis.h"

#include "bindings/library.h"
#include "bindings/spans.h"

namespace nb = nanobind;

namespace bw {
namespace {

constexpr int64_t kMostRows = int64_t{1} << 31;

void check_code(int bits, int state_bits, int64_t span) {
  require(bits >= 1 && bits <= 4, "trellis codes have 1 to 4 bits");
  require(state_bits >= 2 * bits && state_bits >= bits + 4 && state_bits <= kTrellisMostState,
          "a state has up to 16 bits, at least two codes and 4 bits more than one");
  require(span >= 1 && product(span, bits) >= state_bits, "a block holds the bits of a state");
}

void search(const Library& self, int64_t rows, int64_t columns, int64_t span, int bits, int state_bits, int64_t around,
            Span values, Span x, Span importance, Span codes, int threads) {
  check_code(bits, state_bits, span);
  require(rows >= 0 && columns >= 0 && rows <= kMostRows && columns <= kMostRows, "the weight has a wrong shape");
  require(span <= (1 << 16) && columns % span == 0, "columns come in whole blocks of at most 65536");
  require(around >= 1 && around <= span, "the seam is chosen by 1 to `span` columns on each side");
  TrellisSearch task;
  task.rows = rows;
  task.columns = columns;
  task.span = span;
  task.bits = bits;
  task.state_bits = state_bits;
  task.around = around;
  task.values = elements<const float>(values, int64_t{1} << state_bits, "values");
  task.x = elements<const float>(x, product(rows, columns), "x");
  if (given(importance)) task.importance = elements<const float>(importance, columns, "importance");
  auto* target = elements<uint8_t>(codes, product(rows, columns), "codes");
  checked_threads(threads);
  nb::gil_scoped_release release;
  self.kernels->trellis_search(task, target, threads);
}

TrellisWeight geometry(int64_t out, int64_t in, int span, int bits, int state_bits) {
  check_code(bits, state_bits, span);
  require(out >= 1 && in >= 1 && out <= kMostRows && in <= kMostRows, "the weight has a wrong shape");
  require(span % kTrellisRun == 0 && span <= kTrellisMostSpan && in % span == 0,
          "products take whole blocks of a multiple of 32 columns, up to 256");
  TrellisWeight weight;
  weight.out = out;
  weight.in = in;
  weight.span = span;
  weight.bits = bits;
  weight.state_bits = state_bits;
  return weight;
}

void pack(const Library& self, int64_t out, int64_t in, int span, int bits, int state_bits, Span codes, Span packed,
          int threads) {
  const TrellisWeight weight = geometry(out, in, span, bits, state_bits);
  const auto* source = elements<const uint8_t>(codes, product(out, in), "codes");
  auto* target = elements<uint32_t>(packed, product(weight.tiles() * kRows, in / kTrellisRun * bits), "packed");
  checked_threads(threads);
  nb::gil_scoped_release release;
  self.kernels->trellis_pack(weight, source, target, threads);
}

TrellisWeight make_weight(int64_t out, int64_t in, int span, int bits, int state_bits, int code,
                          int64_t blocks_per_scale, Span codes, Span scale, int scale_type, float offset) {
  TrellisWeight weight = geometry(out, in, span, bits, state_bits);
  require(code == 0 || code == 1, "the code is 0 (1MAD) or 1 (3INST)");
  require(scale_type >= 0 && scale_type <= 2, "the float type is 0 (fp32), 1 (fp16) or 2 (bf16)");
  require(blocks_per_scale >= 1 && blocks_per_scale <= kMostRows, "a scale serves 1 to 2^31 blocks");
  weight.code = static_cast<TrellisCode>(code);
  weight.blocks_per_scale = blocks_per_scale;
  weight.groups = (weight.blocks() + blocks_per_scale - 1) / blocks_per_scale;
  weight.scale_type = static_cast<Float>(scale_type);
  weight.offset = offset;
  const int64_t scales = product(weight.tiles() * kRows, weight.groups);
  weight.scale = weight.scale_type == Float::f32
                     ? static_cast<const void*>(elements<const float>(scale, scales, "scale"))
                     : elements<const uint16_t>(scale, scales, "scale");
  weight.codes = elements<const uint32_t>(codes, product(weight.tiles() * kRows, in / kTrellisRun * bits), "codes");
  return weight;
}

void linear(const Library& self, const TrellisWeight& weight, Span x, int type_code, int64_t rows, Span y, Span bias,
            bool exact, int threads) {
  require(type_code >= 0 && type_code <= 2, "the float type is 0 (fp32), 1 (fp16) or 2 (bf16)");
  require(exact || weight.code == TrellisCode::one_mad, "integer products serve the code 1MAD");
  const Float type = static_cast<Float>(type_code);
  const int64_t inputs = product(rows, weight.in), outputs = product(rows, weight.out);
  const bool wide = type == Float::f32;
  const void* input =
      wide ? static_cast<const void*>(elements<const float>(x, inputs, "x")) : elements<const uint16_t>(x, inputs, "x");
  Output output;
  output.type = type;
  output.y = wide ? static_cast<void*>(elements<float>(y, outputs, "y")) : elements<uint16_t>(y, outputs, "y");
  if (given(bias)) output.bias = elements<const float>(bias, weight.out, "bias");
  checked_threads(threads);
  if (rows == 0) return;
  nb::gil_scoped_release release;
  const int64_t places = product(weight.blocks(), rows);
  if (exact) {
    const auto values = scratch<float>(inputs), sums = scratch<float>(places);
    self.kernels->gather_rows(input, type, rows, weight.in, weight.span, values.get(), sums.get(), threads);
    self.kernels->trellis_float(weight, {rows, weight.span, weight.blocks(), values.get(), sums.get()}, output,
                                threads);
    return;
  }
  const auto codes = scratch<int8_t>(inputs);
  const auto scale = scratch<float>(places);
  const auto sums = scratch<int32_t>(places);
  self.kernels->quantize_rows(input, type, rows, weight.in, weight.span, codes.get(), scale.get(), sums.get(), threads);
  self.kernels->trellis_int8(weight, {rows, weight.span, weight.blocks(), codes.get(), scale.get(), sums.get()}, output,
                             threads);
}

}  // namespace

void bind_trellis(nb::module_& module, LibraryClass& library) {
  nb::class_<TrellisWeight>(module, "TrellisWeight", "A view of packed trellis codes; the caller keeps the buffers.")
      .def("__init__", [](TrellisWeight* self, int64_t out, int64_t in, int span, int bits, int state_bits, int code,
                          int64_t blocks_per_scale, Span codes, Span scale, int scale_type, float offset) {
        new (self) TrellisWeight(
            make_weight(out, in, span, bits, state_bits, code, blocks_per_scale, codes, scale, scale_type, offset));
      });
  library.def("trellis_search", search);
  library.def("trellis_pack", pack);
  library.def("trellis_linear", linear);
}

}  // namespace bw
