// Products by byte tables, in bf16 and with ternary digits, against sums of what codes and activations mean.
#include "tests/ways.h"

#include <vector>

namespace bw::test {
namespace {

// -- byte tables: level = step * (128 * high + low - offset) -----------------------------------------------------

struct Tables {
  ByteTables view;
  Exact<uint8_t> low, high;

  // The level of a code, whose row counts where every row has a table of its own.
  int integer(const Case& c, int64_t row, int64_t column, int code) const {
    int64_t place = code;
    if (view.by_row) {
      const int64_t group = column / c.weight.block / c.weight.blocks_per_scale, r = row % kRows;
      place = ((row / kRows * c.weight.groups + group) * 4 + r % 4) * kVector + r / 4 * 16 + code;
    }
    return (view.high ? 128 * high[place] : 0) + low[place] - view.offset;
  }
};

Tables random_tables(Random& random, const Weight& w) {
  const bool by_row = random.coin();
  const int64_t bytes = by_row ? w.tiles() * w.groups * 4 * kVector : 16;
  Tables made{{}, Exact<uint8_t>(bytes), Exact<uint8_t>(bytes)};
  const bool extreme = random.number(0, 3) == 0;
  for (int64_t i = 0; i < bytes; ++i) {
    made.low[i] = static_cast<uint8_t>(extreme ? 127 : random.number(0, 127));
    made.high[i] = static_cast<uint8_t>(extreme ? 127 : random.number(0, 127));
  }
  made.view.low = made.low.data();
  made.view.high = by_row || random.coin() ? made.high.data() : nullptr;
  made.view.by_row = by_row;
  made.view.offset = static_cast<int32_t>(made.view.high ? random.number(0, 16383) : random.number(0, 127));
  made.view.step = random.uniform(0.01f, 1);
  return made;
}

// Within 16 rows by 16 inputs, row 4 L + i and input 4 d + j go to row 4 L + d and input 4 i + j.
void pack_by_rows(const Kernels& kernels, Case& c) {
  Weight whole = c.weight;
  whole.out = c.weight.tiles() * kRows;
  whole.in = c.weight.padded_in();
  Exact<uint8_t> codes(whole.out * whole.in);
  for (int64_t row = 0; row < c.weight.out; ++row)
    for (int64_t k = 0; k < c.weight.in; ++k)
      codes[(row / 4 * 4 + k % 16 / 4) * whole.in + k / 16 * 16 + row % 4 * 4 + k % 4] = c.codes[row * c.weight.in + k];
  kernels.pack_weight(whole, codes.data(), c.packed.data(), 1);
}

void lookup(const Kernels& kernels, Random& random, int threads) {
  Weight w = random_weight(random);
  w.bits = static_cast<int>(random.number(2, 4));
  if (w.block == 16 && w.bits == 3) w.bits = 2;
  w.levels = Levels::affine;  // whatever it says: the tables are the levels
  Case c = make_case(random, w);
  const Tables tables = random_tables(random, w);
  tables.view.by_row ? pack_by_rows(kernels, c) : kernels.pack_weight(w, c.codes.data(), c.packed.data(), threads);
  const Rows x = make_rows(random, w.in);
  const Coded coded = quantized(kernels, x, w.block, threads);
  const Bias bias(random, w.out);
  Result y(x.type, x.rows * w.out);
  kernels.linear_lookup(c.weight, tables.view, coded.view(), y.output(bias.given()), threads);
  check_sums(x, y, w.out, bias, "a product by byte tables: " + c.text, [&](int64_t row, int64_t out, int64_t k) {
    const double level =
        double{tables.view.step} * c.scale_at(c.parameter(out, k)) * tables.integer(c, out, k, c.codes[out * w.in + k]);
    return coded.value(row, k) * level;
  });
}

// -- bf16 --------------------------------------------------------------------------------------------------------

void halves(const Kernels& kernels, Random& random, int threads) {
  Weight w = random_weight(random);
  w.levels = random.coin() ? Levels::affine : Levels::table;
  Case c = make_case(random, w);
  kernels.pack_weight(w, c.codes.data(), c.packed.data(), threads);
  Exact<uint16_t> levels(int64_t{1} << w.bits);
  for (int64_t i = 0; i < levels.size(); ++i)
    levels[i] = to_bf16(w.levels == Levels::affine ? static_cast<float>(i) : random.normal());
  const Rows x = make_rows(random, w.in);
  const int64_t places = w.blocks * x.rows;
  Exact<uint16_t> values(places * w.block);
  Exact<float> sums(places);
  kernels.gather_halves(x.data(), x.type, x.rows, w.in, w.block, values.data(), sums.data(), threads);
  const Bias bias(random, w.out);
  Result y(x.type, x.rows * w.out);
  kernels.linear_bf16(c.weight, {levels.data()}, {x.rows, w.block, w.blocks, values.data(), sums.data()},
                      y.output(bias.given()), threads);
  const auto size = [&](int64_t row, int64_t k) { return double{from_bf16(to_bf16(x.values[row * w.in + k]))}; };
  check_sums(
      x, y, w.out, bias, "a product in bf16: " + c.text,
      [&](int64_t row, int64_t out, int64_t k) {
        const int64_t place = c.parameter(out, k);
        double level = from_bf16(levels[c.codes[out * w.in + k]]);
        if (w.levels == Levels::affine) level -= c.zero_at(place);
        return c.scale_at(place) * level * size(row, k);
      },
      [&](int64_t row, int64_t out, int64_t k) { return 512 * c.scale_at(c.parameter(out, k)) * size(row, k); });
}

// -- five ternary digits in a byte -------------------------------------------------------------------------------

void ternary(const Kernels& kernels, Random& random, int threads) {
  TernaryWeight w;
  w.out = random.number(1, 70);
  w.in = random.number(1, 600);
  w.scale_type = static_cast<Float>(random.number(0, 2));
  Exact<uint8_t> digits(w.out * w.in), codes(w.tiles() * w.vectors() * kVector);
  Exact<float> scale(w.scale_type == Float::f32 ? w.tiles() * kRows : 0);
  Exact<uint16_t> half_scale(w.scale_type == Float::f32 ? 0 : w.tiles() * kRows);
  fill_normal(random, scale);
  for (int64_t i = 0; i < half_scale.size(); ++i)
    half_scale[i] = w.scale_type == Float::f16 ? to_f16(random.normal()) : to_bf16(random.normal());
  const int64_t fill = random.number(0, 3);
  for (int64_t i = 0; i < digits.size(); ++i) digits[i] = static_cast<uint8_t>(fill < 3 ? fill : random.number(0, 2));
  const auto digit = [&](int64_t row, int64_t k) { return row < w.out && k < w.in ? digits[row * w.in + k] : 0; };
  for (int64_t tile = 0; tile < w.tiles(); ++tile) {
    for (int64_t at = 0; at < w.vectors() * kVector; ++at) {
      int value = 0;
      for (int i = 0; i < 5; ++i)
        value =
            3 * value + digit(tile * kRows + at % kVector / 4, at / kVector * TernaryWeight::kInputs + 4 * i + at % 4);
      codes[tile * w.vectors() * kVector + at] = static_cast<uint8_t>((value * 256 + 242) / 243);
    }
  }
  w.codes = codes.data();
  w.scale = w.scale_type == Float::f32 ? static_cast<const void*>(scale.data()) : half_scale.data();
  const Rows x = make_rows(random, w.in);
  const Coded coded = quantized(kernels, x, TernaryWeight::kBlock, threads);
  const Bias bias(random, w.out);
  Result y(x.type, x.rows * w.out);
  kernels.linear_ternary(w, coded.view(), y.output(bias.given()), threads);
  const std::string text = "a ternary product: " + std::to_string(w.out) + "x" + std::to_string(w.in);
  check_sums(x, y, w.out, bias, text, [&](int64_t row, int64_t out, int64_t k) {
    const float half = w.scale_type == Float::f32   ? scale[out]
                       : w.scale_type == Float::f16 ? from_f16(half_scale[out])
                                                    : from_bf16(half_scale[out]);
    return coded.value(row, k) * half * (digit(out, k) - 1);
  });
}

}  // namespace

void test_ways(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    const int threads = static_cast<int>(random.number(1, 4));
    lookup(kernels, random, threads);
    ternary(kernels, random, threads);
    if (kernels.linear_bf16) halves(kernels, random, threads);
  }
}

}  // namespace bw::test
