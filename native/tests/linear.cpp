// Packed products against plain loops: random shapes, every kind of level and zero point, numbers at the edges.
#include <limits>
#include <vector>

#include "core/half.h"
#include "tests/check.h"

namespace bw::test {
namespace {

// A weight with everything that it points to, and its codes one by one.
struct Case {
  Weight weight;
  Exact<uint8_t> codes, packed, zero_codes;
  Exact<float> scale, zeros, table;
  Exact<uint16_t> half_scale;
  std::string text;

  int64_t parameter(int64_t row, int64_t column) const {
    const int64_t group = column / weight.block / weight.blocks_per_scale;
    return (row / kRows * weight.groups + group) * kRows + row % kRows;
  }
  double scale_at(int64_t place) const {
    if (weight.scale_type == Float::f32) return scale[place];
    return weight.scale_type == Float::f16 ? from_f16(half_scale[place]) : from_bf16(half_scale[place]);
  }
  double zero_at(int64_t place) const {
    return weight.zero_codes ? zero_codes[place] : weight.zeros ? zeros[place] : weight.zero;
  }
  double value(int64_t row, int64_t column) const {
    const int64_t place = parameter(row, column);
    const int code = codes[row * weight.in + column], levels = 1 << weight.bits;
    if (weight.levels == Levels::affine) return scale_at(place) * (code - zero_at(place));
    return scale_at(place) * table[weight.levels == Levels::table ? code : place * levels + code];
  }
};

// The layout of core/weight.h, one code at a time.
void pack_plainly(const Case& c, Exact<uint8_t>& packed) {
  const Weight& w = c.weight;
  for (int64_t row = 0; row < w.out; ++row) {
    for (int64_t column = 0; column < w.in; ++column) {
      const int code = c.codes[row * w.in + column];
      int64_t start = row / kRows * w.tile_bytes() + column / w.block * w.block_bytes();
      const int64_t k = column % w.block;
      for (int offset = 0; offset < w.bits;) {
        const int rest = w.bits - offset, width = w.bits == 8 ? 8 : rest >= 4 ? 4 : rest >= 2 ? 2 : 1;
        const int64_t fields = 8 / width, q = k / 4;
        const int field = code >> offset & ((1 << width) - 1);
        packed[start + q / fields * kVector + 4 * (row % kRows) + k % 4] |=
            static_cast<uint8_t>(field << (q % fields * width));
        start += w.block / (4 * fields) * kVector;
        offset += width;
      }
    }
  }
}

Weight shape(Random& random) {
  Weight w;
  w.out = random.number(1, 70);
  w.in = random.number(1, 600);
  w.bits = static_cast<int>(random.number(1, 8));
  w.block = random.one_of({16, 32, 64, 128, 256});
  if (w.block == 16 && w.bits % 2) w.block = 32;
  w.blocks = (w.in + w.block - 1) / w.block;
  w.blocks_per_scale = random.one_of({1, 1, 2, 100});
  w.groups = (w.blocks + w.blocks_per_scale - 1) / w.blocks_per_scale;
  w.levels = static_cast<Levels>(random.one_of({0, 0, 1, 2}));
  w.scale_type = static_cast<Float>(random.number(0, 2));
  return w;
}

Case make_case(Random& random) {
  const Weight w = shape(random);
  const int64_t parameters = w.tiles() * kRows * w.groups, levels = int64_t{1} << w.bits;
  const int64_t entries = w.levels == Levels::affine ? 0 : w.levels == Levels::table ? levels : parameters * levels;
  const bool wide = w.scale_type == Float::f32;
  Case c{w,
         Exact<uint8_t>(w.out * w.in),
         Exact<uint8_t>(w.tiles() * w.tile_bytes()),
         Exact<uint8_t>(parameters),
         Exact<float>(wide ? parameters : 0),
         Exact<float>(parameters),
         Exact<float>(entries),
         Exact<uint16_t>(wide ? 0 : parameters),
         ""};
  const int fill = static_cast<int>(random.number(0, 3));
  for (int64_t i = 0; i < c.codes.size(); ++i)
    c.codes[i] = static_cast<uint8_t>(fill == 0 ? levels - 1 : fill == 1 ? 0 : random.number(0, levels - 1));
  for (int64_t i = 0; i < parameters; ++i) {
    const float scale = random.uniform(-1.5f, 1.5f);
    if (wide) c.scale[i] = scale;
    if (!wide) c.half_scale[i] = w.scale_type == Float::f16 ? to_f16(scale) : to_bf16(scale);
    c.zero_codes[i] = static_cast<uint8_t>(random.number(0, levels - 1));
    c.zeros[i] = random.uniform(-10, 300);
  }
  for (int64_t i = 0; i < entries; ++i) c.table[i] = random.normal();
  Weight& made = c.weight;
  made.codes = c.packed.data();
  made.scale = wide ? static_cast<const void*>(c.scale.data()) : c.half_scale.data();
  const int64_t kind = random.number(0, 2);
  if (kind == 0) made.zero_codes = c.zero_codes.data();
  if (kind == 1) made.zeros = c.zeros.data();
  made.zero = static_cast<int32_t>(random.number(0, 255));
  if (entries) made.table = c.table.data();
  c.text = std::to_string(w.out) + "x" + std::to_string(w.in) + " bits " + std::to_string(w.bits) + " block " +
           std::to_string(w.block) + " levels " + std::to_string(static_cast<int>(w.levels));
  return c;
}

// Rows of some float type, beside their values.
struct Rows {
  int64_t rows, in;
  Float type;
  Exact<float> values;
  Exact<uint16_t> halves;
  std::vector<bool> bad;  // rows that hold NaN or Inf

  const void* data() const { return type == Float::f32 ? static_cast<const void*>(values.data()) : halves.data(); }
};

Rows make_rows(Random& random, int64_t in) {
  const int64_t rows = random.number(0, 20);
  const Float type = static_cast<Float>(random.number(0, 2));
  Rows x{rows, in, type, Exact<float>(rows * in), Exact<uint16_t>(type == Float::f32 ? 0 : rows * in), {}};
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (int64_t row = 0; row < rows; ++row) {
    const float size = random.one_of({1.0f, 1.0f, 1.0f, 0.0f, 1e-42f, 1e-5f, 100.0f});
    for (int64_t k = 0; k < in; ++k) x.values[row * in + k] = size * random.normal();
    x.bad.push_back(random.number(0, 9) == 0);
    if (x.bad.back()) x.values[row * in + random.number(0, in - 1)] = random.one_of({inf, -inf, nan});
  }
  for (int64_t i = 0; i < x.halves.size(); ++i) {
    x.halves[i] = type == Float::f16 ? to_f16(x.values[i]) : to_bf16(x.values[i]);
    x.values[i] = type == Float::f16 ? from_f16(x.halves[i]) : from_bf16(x.halves[i]);
  }
  return x;
}

struct Coded {
  Exact<int8_t> codes;
  Exact<float> scale;
  Exact<int32_t> sums;
};

// The 8-bit codes of sound rows are those of a plain loop, to the bit.
Coded quantized(const Kernels& kernels, const Case& c, const Rows& x, int threads) {
  const Weight& w = c.weight;
  Coded coded{Exact<int8_t>(w.blocks * x.rows * w.block), Exact<float>(w.blocks * x.rows),
              Exact<int32_t>(w.blocks * x.rows)};
  kernels.quantize_rows(x.data(), x.type, x.rows, w.in, w.block, coded.codes.data(), coded.scale.data(),
                        coded.sums.data(), threads);
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t b = 0; b < w.blocks && !x.bad[static_cast<size_t>(row)]; ++b) {
      const int64_t place = b * x.rows + row;
      float peak = 0;
      const auto at = [&](int64_t k) { return b * w.block + k < w.in ? x.values[row * w.in + b * w.block + k] : 0.0f; };
      for (int64_t k = 0; k < w.block; ++k) peak = std::fmax(peak, std::fabs(at(k)));
      const float step = peak == 0 ? 1.0f : peak / 127.0f, inverse = step >= 1.2e-38f ? 1.0f / step : 0.0f;
      check(coded.scale[place] == step, "a block's step: " + c.text);
      int32_t sum = 0;
      for (int64_t k = 0; k < w.block; ++k) {
        const auto code = static_cast<int32_t>(std::nearbyint(at(k) * inverse));
        check(coded.codes[place * w.block + k] == code, "an activation's code: " + c.text);
        sum += code;
      }
      check(coded.sums[place] == sum, "a block's sum: " + c.text);
    }
  }
  return coded;
}

float stored(const Rows& x, const Exact<float>& y, const Exact<uint16_t>& halves, int64_t i) {
  return x.type == Float::f32 ? y[i] : x.type == Float::f16 ? from_f16(halves[i]) : from_bf16(halves[i]);
}

// One product in both ways against sums in double precision, within the rounding of fp32 sums and of the output.
void check_product(const Kernels& kernels, const Case& c, const Rows& x, const Exact<float>* bias, int threads,
                   bool exact) {
  const Weight& w = c.weight;
  Exact<float> y(x.type == Float::f32 ? x.rows * w.out : 0);
  Exact<uint16_t> halves(x.type == Float::f32 ? 0 : x.rows * w.out);
  const Output output{x.type == Float::f32 ? static_cast<void*>(y.data()) : halves.data(), x.type,
                      bias ? bias->data() : nullptr};
  Coded coded = quantized(kernels, c, x, threads);
  if (exact) {
    Exact<float> values(w.blocks * x.rows * w.block), sums(w.blocks * x.rows);
    kernels.gather_rows(x.data(), x.type, x.rows, w.in, w.block, values.data(), sums.data(), threads);
    kernels.linear_float(w, {x.rows, w.block, w.blocks, values.data(), sums.data()}, output, threads);
  } else {
    kernels.linear_int8(w, {x.rows, w.block, w.blocks, coded.codes.data(), coded.scale.data(), coded.sums.data()},
                        output, threads);
  }
  const double grain = x.type == Float::f32 ? 0 : x.type == Float::f16 ? 0x1p-11 : 0x1p-8;
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t out = 0; out < w.out; ++out) {
      double sum = bias ? (*bias)[out] : 0, weight = std::fabs(sum);
      for (int64_t k = 0; k < w.in; ++k) {
        const int64_t place = k / w.block * x.rows + row;
        const double a =
            exact ? x.values[row * w.in + k] : coded.codes[place * w.block + k % w.block] * double{coded.scale[place]};
        sum += a * c.value(out, k);
        // The kernels subtract zero points from finished sums, so those count in the rounding error.
        weight += std::fabs(a) * (std::fabs(c.value(out, k)) + std::fabs(c.scale_at(c.parameter(out, k))) * 512);
      }
      const float got = stored(x, y, halves, row * w.out + out);
      if (x.bad[static_cast<size_t>(row)]) {
        // A weight of zero times infinity is NaN, too.
        check(!std::isfinite(got), "NaN and Inf reach the output: " + c.text);
      } else if (!(x.type == Float::f16 && std::fabs(sum) > 60000)) {
        check(std::fabs(got - sum) <= 2e-6 * weight + grain * std::fabs(sum) + 1e-7, "a product: " + c.text);
      }
    }
  }
}

}  // namespace

void test_linear(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    Case c = make_case(random);
    const int threads = static_cast<int>(random.number(1, 4));
    kernels.pack_weight(c.weight, c.codes.data(), c.packed.data(), threads);
    Exact<uint8_t> plain(c.packed.size()), codes(c.codes.size());
    pack_plainly(c, plain);
    for (int64_t i = 0; i < plain.size(); ++i) check(plain[i] == c.packed[i], "the layout: " + c.text);
    kernels.unpack_weight(c.weight, codes.data(), threads);
    for (int64_t i = 0; i < codes.size(); ++i) check(codes[i] == c.codes[i], "unpacked codes: " + c.text);
    const Rows x = make_rows(random, c.weight.in);
    Exact<float> bias(c.weight.out);
    for (int64_t i = 0; i < bias.size(); ++i) bias[i] = random.normal();
    const Exact<float>* given = random.coin() ? &bias : nullptr;
    check_product(kernels, c, x, given, threads, true);
    if (c.weight.levels == Levels::affine) check_product(kernels, c, x, given, threads, false);
  }
}

}  // namespace bw::test
