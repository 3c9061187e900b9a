// What a product needs of its parts, and which kernel gets them.
#include "bindings/call.h"

#include <bit>

namespace bw {
namespace {

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
  if (call.way == Way::lookup)
    return call.kernels.linear_lookup(*call.weight, *call.tables, rows, output, call.threads);
  if (call.way == Way::sums || call.way == Way::pairs)
    return call.kernels.linear_sums(*call.weight, rows, call.way == Way::pairs, output, call.threads);
  if (call.way == Way::lattice)
    return call.kernels.lattice_int8(*call.weight, call.vectors->lattice, rows, output, call.threads);
  if (call.way == Way::triples) return call.kernels.linear_triples(*call.ternary, rows, output, call.threads);
  if (call.way == Way::nibbles)
    return call.kernels.linear_nibbles(*call.weight, call.counts, rows, output, call.threads);
  if (call.way == Way::two_level)
    return call.kernels.linear_two_level(*call.weight, call.two_level, rows, output, call.threads);
  if (call.way == Way::mixed)
    return call.kernels.linear_mixed(*call.weight, call.coding->wide / call.block(), rows, output, call.threads);
  if (call.way == Way::products)
    return call.kernels.linear_products(*call.weight, {call.counts, static_cast<int32_t>(call.coding->low)}, rows,
                                        output, call.threads);
  if (call.way == Way::bits) {
    const int values = static_cast<int>(call.coding->high - call.coding->low);
    const int lowest = static_cast<int>(call.coding->low) - (call.coding->high > 127 ? 128 : 0);
    return call.kernels.linear_bits(*call.weight, rows, std::bit_width(static_cast<unsigned>(values)), lowest,
                                    call.counts, output, call.threads);
  }
  if (!call.chosen) return call.kernels.linear_int8(*call.weight, rows, output, call.threads);
  float* main = workspace.take<float>(product(call.rows, call.out));
  call.kernels.linear_int8(*call.weight, rows, {main, Float::f32, nullptr}, call.threads);
  call.kernels.add_blocks(call.chosen->chosen, call.chosen->which, rows, main, output, call.threads);
}

// The widest input whose sums of 8-bit products stay in 32 bits.
constexpr int64_t kWidest = 1 << 16;

// What the kernels of the catalogue need beyond that.
void check_variants(const Call& call) {
  const Weight* weight = call.weight;
  const Coding* coding = call.coding;
  const bool by_row = coding && coding->run >= call.in && coding->wide < 0;
  require((call.way == Way::mixed) == (coding && coding->wide >= 0), "activations of two widths need their kernel");
  if (call.way == Way::mixed)
    require(weight->bits == 4 && weight->levels == Levels::affine && weight->block >= 16 && !coding->shifts() &&
                !coding->given && coding->low >= -8 && coding->high <= 7 && coding->wide % weight->block == 0,
            "activations of two widths go with codes of 4 bits, in whole blocks");
  if (call.way == Way::products)
    require(weight->bits == 2 && weight->levels == Levels::affine && coding && coding->high - coding->low <= 3 &&
                coding->low >= -128 && coding->high <= 127,
            "tables of products serve 2 bits by 2 bits");
  if (call.way == Way::nibbles || call.way == Way::two_level)
    require(weight->bits == 4 && weight->levels == Levels::affine && weight->groups == 1 && by_row &&
                call.in <= kWidest && weight->block % 16 == 0,
            "sums in 32 bits serve codes of 4 bits, one scale for a row on both sides and up to 65536 inputs");
}

void check(const Call& call) {
  require(int{call.ternary != nullptr} + int{call.weight != nullptr} + int{call.additive()} == 1,
          "a product needs one weight");
  const bool points = call.way == Way::lattice || call.way == Way::lattice_exact;
  require((call.way == Way::additive) == call.additive() && points == (call.vectors && !call.additive()),
          "the tables of vectors do not fit the kernel");
  const bool ternary = call.way == Way::ternary || call.way == Way::triples;
  require(ternary == (call.ternary != nullptr), "the weight does not fit the kernel");
  require(!ternary || (call.way == Way::triples) == call.ternary->triples, "the digits are packed for another kernel");
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
}

void check_coding(const Call& call, const Terms* terms) {
  require(call.way != Way::bits || (call.coding && call.coding->run >= call.in && call.weight->block >= 32),
          "products of bits need activations with one code and one scale for a row");
  check_variants(call);
  if (!call.coding) return;
  require(
      call.way != Way::exact && call.way != Way::bf16 && call.way != Way::lattice_exact && call.way != Way::additive,
      "coded activations go into integer products");
  const int64_t run = call.coding->run;
  require(run >= call.in || run % call.block() == 0, "a scale of activations serves whole blocks");
  const int64_t runs = (call.in + run - 1) / run;
  require(!call.coding->shifts() || (terms && terms->shifts == runs), "zero points need the sums of the weight");
}

}  // namespace

Call make_call(const Library& self, int way, const Weight* weight, const TernaryWeight* ternary,
               const ByteTables* tables, const VectorTables* vectors, Span levels, const Terms* terms,
               const Coding* coding, Float type, int threads) {
  require(way >= 0 && way < kWays, "no such kernel");
  Call call{*self.kernels,
            static_cast<Way>(way),
            weight,
            ternary,
            tables,
            {},
            vectors,
            nullptr,
            {},
            nullptr,
            coding,
            nullptr,
            type,
            0,
            0,
            0,
            checked_threads(threads)};
  check(call);
  call.in = ternary ? ternary->in : weight ? weight->in : vectors->additive.in;
  call.out = ternary ? ternary->out : weight ? weight->out : vectors->additive.out;
  require(!terms || (terms->out == call.out && terms->in == call.in), "the terms belong to another weight");
  check_coding(call, terms);
  if (terms && terms->which) {
    require(call.way == Way::int8 && terms->chosen.block == weight->block && terms->most < weight->blocks,
            "chosen blocks are blocks of an integer product");
    call.chosen = terms;
  }
  if (call.way == Way::bf16)
    call.levels.levels = buffer(levels).as<const uint16_t>(int64_t{2} << weight->bits, "levels");
  if (call.way == Way::bits)
    call.counts = buffer(levels).as<const int32_t>(product(weight->tiles() * kRows, 4 * weight->groups), "counts");
  if (call.way == Way::products) call.counts = buffer(levels).as<const int32_t>(64, "products");
  if (call.way == Way::nibbles)
    call.counts = buffer(levels).as<const int32_t>(product(weight->tiles() * kRows, 4), "sums");
  if (call.way == Way::two_level) {
    const int64_t count = product(weight->tiles() * kRows, weight->blocks);
    call.two_level.scales = buffer(levels).as<const uint8_t>(product(count, 2), "scales");
    call.two_level.zeros = call.two_level.scales + count;
  }
  return call;
}

void add_up(const Call& call, const Terms* terms, const Output& output) {
  Workspace workspace;
  require(!call.chosen || product(call.rows, call.blocks() * call.block()) < int64_t{1} << 31,
          "chosen blocks serve fewer than 2^31 activations");
  if (!terms) return multiply(call, workspace, nullptr, nullptr, output);
  float* main = workspace.take<float>(product(call.rows, call.out));
  float* shift =
      call.coding && call.coding->shifts() ? workspace.take<float>(product(call.rows, terms->shifts)) : nullptr;
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

}  // namespace bw
