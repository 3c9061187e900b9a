#include "bindings/library.h"
#include "bindings/spans.h"
#include "bindings/workspace.h"

namespace nb = nanobind;

namespace bw {
namespace {

Weight geometry(int64_t out, int64_t in, int bits, int block, int64_t blocks_per_scale) {
  require(out >= 1 && in >= 1 && out <= (int64_t{1} << 31) && in <= (int64_t{1} << 31), "the weight has a wrong shape");
  require(bits >= 1 && bits <= 8, "codes have 1 to 8 bits");
  require(block == 16 || block == 32 || block == 64 || block == 128 || block == 256,
          "blocks are of 16, 32, 64, 128 or 256 inputs");
  require(block != 16 || (bits & 1) == 0, "blocks of 16 inputs hold codes of 2, 4, 6 or 8 bits");
  require(blocks_per_scale >= 1 && blocks_per_scale <= (int64_t{1} << 31), "a scale serves 1 to 2^31 blocks");
  Weight weight;
  weight.out = out;
  weight.in = in;
  weight.bits = bits;
  weight.block = block;
  weight.blocks = (in + block - 1) / block;
  weight.blocks_per_scale = blocks_per_scale;
  weight.groups = (weight.blocks + blocks_per_scale - 1) / blocks_per_scale;
  return weight;
}

Weight make_weight(int64_t out, int64_t in, int bits, int block, int64_t blocks_per_scale, int levels, Span codes,
                   Span scale, int scale_type, Span zero_codes, Span zeros, int zero, Span table) {
  Weight weight = geometry(out, in, bits, block, blocks_per_scale);
  require(levels >= 0 && levels <= 2, "levels are 0 (affine), 1 (table) or 2 (a table for every row)");
  weight.levels = static_cast<Levels>(levels);
  weight.scale_type = float_type(scale_type);
  weight.codes = buffer(codes).as<const uint8_t>(product(weight.tiles(), weight.tile_bytes()), "codes");
  const int64_t parameters = product(weight.tiles() * kRows, weight.groups);
  const int64_t scale_bytes = product(parameters, float_bytes(weight.scale_type));
  weight.scale = weight.scale_type == Float::f32
                     ? static_cast<const void*>(buffer(scale).as<const float>(scale_bytes, "scale"))
                     : buffer(scale).as<const uint16_t>(scale_bytes, "scale");
  if (std::get<0>(zero_codes)) weight.zero_codes = buffer(zero_codes).as<const uint8_t>(parameters, "zero codes");
  if (std::get<0>(zeros)) weight.zeros = buffer(zeros).as<const float>(product(4, parameters), "zeros");
  require(zero >= 0 && zero < 256, "the zero point is 0 to 255");
  weight.zero = zero;
  if (weight.levels != Levels::affine) {
    const int64_t entries = product(weight.levels == Levels::table ? 1 : parameters, int64_t{1} << bits);
    weight.table = buffer(table).as<const float>(product(4, entries), "table");
  }
  return weight;
}

void pack(const Library& self, int64_t out, int64_t in, int bits, int block, Span codes, Span packed, int threads) {
  Weight weight = geometry(out, in, bits, block, 1);
  const auto* source = buffer(codes).as<const uint8_t>(product(out, in), "codes");
  auto* target = buffer(packed).as<uint8_t>(product(weight.tiles(), weight.tile_bytes()), "packed");
  checked_threads(threads);
  nb::gil_scoped_release release;
  self.kernels->pack_weight(weight, source, target, threads);
}

void unpack(const Library& self, const Weight& weight, Span codes, int threads) {
  auto* target = buffer(codes).as<uint8_t>(product(weight.out, weight.in), "codes");
  checked_threads(threads);
  nb::gil_scoped_release release;
  self.kernels->unpack_weight(weight, target, threads);
}

Output output_of(const Weight& weight, int64_t rows, Span y, Float type, Span bias) {
  Output output;
  output.type = type;
  const int64_t bytes = product(product(rows, weight.out), float_bytes(type));
  output.y =
      type == Float::f32 ? static_cast<void*>(buffer(y).as<float>(bytes, "y")) : buffer(y).as<uint16_t>(bytes, "y");
  if (given(bias)) output.bias = buffer(bias).as<const float>(4 * weight.out, "bias");
  return output;
}

void linear(const Library& self, const Weight& weight, Span x, int type_code, int64_t rows, Span y, Span bias,
            bool exact, int threads) {
  const Float type = float_type(type_code);
  const int64_t bytes = product(product(rows, weight.in), float_bytes(type));
  const void* input = type == Float::f32 ? static_cast<const void*>(buffer(x).as<const float>(bytes, "x"))
                                         : buffer(x).as<const uint16_t>(bytes, "x");
  const Output output = output_of(weight, rows, y, type, bias);
  checked_threads(threads);
  require(exact || weight.levels == Levels::affine, "integer products serve affine weights");
  if (rows == 0) return;
  nb::gil_scoped_release release;
  Workspace workspace;
  const int64_t places = product(weight.blocks, rows), values = product(places, weight.block);
  if (exact) {
    float* cut = workspace.take<float>(values);
    float* sums = workspace.take<float>(places);
    self.kernels->gather_rows(input, type, rows, weight.in, weight.block, cut, sums, threads);
    self.kernels->linear_float(weight, {rows, weight.block, weight.blocks, cut, sums}, output, threads);
    return;
  }
  int8_t* codes = workspace.take<int8_t>(values);
  float* scale = workspace.take<float>(places);
  int32_t* sums = workspace.take<int32_t>(places);
  self.kernels->quantize_rows(input, type, rows, weight.in, weight.block, codes, scale, sums, threads);
  self.kernels->linear_int8(weight, {rows, weight.block, weight.blocks, codes, scale, sums}, output, threads);
}

}  // namespace

void bind_linear(nb::module_& module, LibraryClass& library) {
  nb::class_<Weight>(module, "Weight", "A view of a packed weight; the caller keeps the buffers alive.")
      .def("__init__",
           [](Weight* self, int64_t out, int64_t in, int bits, int block, int64_t blocks_per_scale, int levels,
              Span codes, Span scale, int scale_type, Span zero_codes, Span zeros, int zero, Span table) {
             new (self) Weight(make_weight(out, in, bits, block, blocks_per_scale, levels, codes, scale, scale_type,
                                           zero_codes, zeros, zero, table));
           });
  module.def("packed_bytes", [](int64_t out, int64_t in, int bits, int block) {
    const Weight weight = geometry(out, in, bits, block, 1);
    return product(weight.tiles(), weight.tile_bytes());
  });
  library.def("pack_weight", pack);
  library.def("unpack_weight", unpack);
  library.def("linear", linear);
}

}  // namespace bw
