// Packed weights and rows of activations at random: odd shapes, every kind of level and zero point, numbers at the
// edges.
#pragma once

#include <limits>
#include <vector>

#include "core/half.h"
#include "tests/check.h"

namespace bw::test {

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
inline void pack_plainly(const Case& c, Exact<uint8_t>& packed) {
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

inline Weight random_weight(Random& random) {
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

// A weight of this shape with random codes and parameters; `packed` is still empty.
inline Case make_case(Random& random, const Weight& w) {
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

// Rows at random; some are zero, tiny or large, some hold a NaN or an infinity.
inline Rows rows_of(Random& random, int64_t rows, int64_t in, Float type) {
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

inline Rows make_rows(Random& random, int64_t in) {
  const int64_t rows = random.number(0, 20);
  return rows_of(random, rows, in, static_cast<Float>(random.number(0, 2)));
}

// Rows as the integer products read them.
struct Coded {
  int64_t rows;
  int block;
  int64_t blocks;
  Exact<int8_t> codes;
  Exact<float> scale;
  Exact<int32_t> sums;

  Coded(int64_t rows, int64_t in, int block)
      : rows(rows),
        block(block),
        blocks((in + block - 1) / block),
        codes(blocks * rows * block),
        scale(blocks * rows),
        sums(blocks * rows) {}
  QuantizedRows view() const { return {rows, block, blocks, codes.data(), scale.data(), sums.data()}; }
  int code(int64_t row, int64_t k) const { return codes[(k / block * rows + row) * block + k % block]; }
  double value(int64_t row, int64_t k) const { return code(row, k) * double{scale[k / block * rows + row]}; }
};

inline Coded quantized(const Kernels& kernels, const Rows& x, int block, int threads) {
  Coded coded(x.rows, x.in, block);
  kernels.quantize_rows(x.data(), x.type, x.rows, x.in, block, coded.codes.data(), coded.scale.data(),
                        coded.sums.data(), threads);
  return coded;
}

// Where a product goes, in any float type.
class Result {
 public:
  Result(Float type, int64_t count)
      : type_(type), wide_(type == Float::f32 ? count : 0), halves_(type == Float::f32 ? 0 : count) {}
  Output output(const Exact<float>* bias) {
    return {type_ == Float::f32 ? static_cast<void*>(wide_.data()) : halves_.data(), type_,
            bias ? bias->data() : nullptr};
  }
  float operator[](int64_t i) const {
    return type_ == Float::f32 ? wide_[i] : type_ == Float::f16 ? from_f16(halves_[i]) : from_bf16(halves_[i]);
  }
  // Whether the value is `wanted`, up to a share of `size` (what sums of that size may lose) and the type's own grain.
  bool holds(int64_t i, double wanted, double size, double share = 2e-6) const {
    if (type_ == Float::f16 && std::fabs(wanted) > 60000) return true;
    const double grain = type_ == Float::f32 ? 0 : type_ == Float::f16 ? 0x1p-11 : 0x1p-8;
    return std::fabs((*this)[i] - wanted) <= share * size + grain * std::fabs(wanted) + 1e-7;
  }

 private:
  Float type_;
  Exact<float> wide_;
  Exact<uint16_t> halves_;
};

inline void fill_normal(Random& random, Exact<float>& values) {
  for (int64_t i = 0; i < values.size(); ++i) values[i] = random.normal();
}

}  // namespace bw::test
