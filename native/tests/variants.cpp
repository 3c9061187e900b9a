// Products of the catalogue's variants against plain loops over integers: equal to the last bit.
#include <vector>

#include "tests/check.h"

namespace bw::test {
namespace {

// Rows of random codes; each has one scale, 1 or 2.
struct Rows {
  int64_t rows, in;
  int block;
  Exact<int8_t> codes;
  Exact<float> scale;
  Exact<int32_t> sums;

  Rows(Random& random, int64_t rows_, int64_t in_, int block_, int low, int high)
      : rows(rows_),
        in(in_),
        block(block_),
        codes(blocks() * rows * block),
        scale(blocks() * rows),
        sums(blocks() * rows) {
    for (int64_t r = 0; r < rows; ++r) {
      const float one = random.coin() ? 1.0f : 2.0f;
      const bool extreme = random.number(0, 3) == 0;
      for (int64_t b = 0; b < blocks(); ++b) scale[b * rows + r] = one;
      for (int64_t k = 0; k < in; ++k) {
        const auto code = static_cast<int8_t>(extreme ? low : random.number(low, high));
        codes[place(r, k)] = code;
        sums[k / block * rows + r] += code;
      }
    }
  }
  int64_t blocks() const { return (in + block - 1) / block; }
  int64_t place(int64_t row, int64_t k) const { return (k / block * rows + row) * block + k % block; }
  int code(int64_t row, int64_t k) const { return codes[place(row, k)]; }
  QuantizedRows view() const { return {rows, block, blocks(), codes.data(), scale.data(), sums.data()}; }
};

// A weight of random codes with the scale 1.
struct Coded {
  Weight weight;
  Exact<uint8_t> codes, packed;
  Exact<float> scale;

  static Weight shape(int64_t out, int64_t in, int bits, int block) {
    Weight w;
    w.out = out, w.in = in, w.bits = bits, w.block = block;
    w.blocks = w.blocks_per_scale = (in + block - 1) / block;
    return w;
  }
  Coded(const Kernels& kernels, Random& random, int64_t out, int64_t in, int bits, int block)
      : weight(shape(out, in, bits, block)),
        codes(out * in),
        packed(weight.tiles() * weight.tile_bytes()),
        scale(weight.tiles() * kRows) {
    for (int64_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(random.number(0, (1 << bits) - 1));
    for (int64_t i = 0; i < scale.size(); ++i) scale[i] = 1;
    weight.codes = packed.data();
    weight.scale = scale.data();
    kernels.pack_weight(weight, codes.data(), packed.data(), 2);
  }
};

// y[row][out] against value(row, out, k), summed over all inputs.
template <class Value>
void compare(const Exact<float>& y, const Rows& x, int64_t out, const char* name, Value&& value) {
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t o = 0; o < out; ++o) {
      int64_t sum = 0;
      for (int64_t k = 0; k < x.in; ++k) sum += value(row, o, k);
      check(y[row * out + o] == static_cast<float>(sum) * x.scale[row],
            std::string("a product of ") + name + ", " + std::to_string(out) + "x" + std::to_string(x.in) + ", rows " +
                std::to_string(x.rows));
    }
  }
}

void test_triples(const Kernels& kernels, Random& random, int64_t out, int64_t in, int64_t rows, int threads) {
  TernaryWeight weight;
  weight.out = out, weight.in = in, weight.triples = true;
  Exact<int8_t> digits(out * in);
  Exact<uint8_t> packed(weight.talls() * weight.units() * TernaryWeight::kUnitBytes);
  Exact<float> scale(weight.tiles() * kRows);
  for (int64_t i = 0; i < digits.size(); ++i) digits[i] = static_cast<int8_t>(random.number(-1, 1));
  for (int64_t i = 0; i < scale.size(); ++i) scale[i] = 1;
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t t = 0; 3 * t < in; ++t) {
      int value = 0;
      for (int64_t k = 3 * t; k < 3 * t + 3; ++k) value = 3 * value + (k < in ? digits[o * in + k] : 0);
      const int64_t unit = o / 64 * weight.units() + t / 8, byte = o % 64 % 32 * 2 + o % 64 / 32;
      uint8_t* vectors = packed.data() + unit * TernaryWeight::kUnitBytes;
      vectors[t % 8 / 2 * kVector + byte] |= static_cast<uint8_t>(std::abs(value) << (t % 2 * 4));
      vectors[4 * kVector + byte] |= static_cast<uint8_t>((value < 0) << t % 8);
    }
  }
  weight.codes = packed.data();
  weight.scale = scale.data();
  const Rows x(random, rows, in, TernaryWeight::kTripleBlock, -128, 127);
  Exact<float> y(rows * out);
  kernels.linear_triples(weight, x.view(), {y.data(), Float::f32, nullptr}, threads);
  compare(y, x, out, "triples", [&](int64_t row, int64_t o, int64_t k) { return digits[o * in + k] * x.code(row, k); });
}

void test_products(const Kernels& kernels, Random& random, int64_t out, int64_t in, int64_t rows, int threads) {
  const int block = random.one_of({16, 32, 64, 128, 256}), lowest = random.one_of({0, -2});
  const Coded w(kernels, random, out, in, 2, block);
  const Rows x(random, rows, in, block, lowest, lowest + 3);
  const int most = random.one_of({1, 7, 60, 100, 3000});
  Exact<int32_t> entries(16);
  for (int e = 0; e < 16; ++e) entries[e] = static_cast<int32_t>(random.number(-most, most));
  Exact<float> y(rows * out);
  kernels.linear_products(w.weight, {entries.data(), lowest}, x.view(), {y.data(), Float::f32, nullptr}, threads);
  compare(y, x, out, "tables", [&](int64_t row, int64_t o, int64_t k) {
    return entries[4 * (x.code(row, k) - lowest) + w.codes[o * in + k]];
  });
}

void test_four_bits(const Kernels& kernels, Random& random, int64_t out, int64_t in, int64_t rows, int threads) {
  const int block = random.one_of({16, 32, 64, 128, 256});
  const Coded w(kernels, random, out, in, 4, block);
  const int64_t tiles = w.weight.tiles(), blocks = w.weight.blocks;
  const auto level = [&](int64_t o, int64_t k) { return w.codes[o * in + k] ^ 8; };
  Exact<int32_t> sums(tiles * kRows);
  for (int64_t o = 0; o < out; ++o)
    for (int64_t k = 0; k < in; ++k) sums[o] += level(o, k) - 8;
  const Rows x(random, rows, in, block, -128, 127);
  Exact<float> y(rows * out);
  const Output output{y.data(), Float::f32, nullptr};
  kernels.linear_nibbles(w.weight, sums.data(), x.view(), output, threads);
  compare(y, x, out, "nibbles", [&](int64_t row, int64_t o, int64_t k) { return (level(o, k) - 8) * x.code(row, k); });

  Exact<uint8_t> levels(2 * tiles * blocks * kRows);
  for (int64_t i = 0; i < levels.size(); ++i) levels[i] = static_cast<uint8_t>(random.number(0, 15));
  const uint8_t *scales = levels.data(), *zeros = scales + levels.size() / 2;
  kernels.linear_two_level(w.weight, {scales, zeros}, x.view(), output, threads);
  compare(y, x, out, "two levels", [&](int64_t row, int64_t o, int64_t k) {
    const int64_t at = (o / kRows * blocks + k / block) * kRows + o % kRows;
    return scales[at] * (w.codes[o * in + k] - zeros[at]) * x.code(row, k);
  });

  Rows mixed(random, rows, in, block, -8, 7);
  const int64_t wide = random.number(0, blocks);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t k = wide * block; k < in; ++k) {
      mixed.sums[k / block * rows + row] += 10 * mixed.code(row, k);
      mixed.codes[mixed.place(row, k)] = static_cast<int8_t>(11 * mixed.code(row, k));
    }
  }
  kernels.linear_mixed(w.weight, wide, mixed.view(), output, threads);
  compare(y, mixed, out, "two widths",
          [&](int64_t row, int64_t o, int64_t k) { return w.codes[o * in + k] * mixed.code(row, k); });
}

void test_blocks(const Kernels& kernels, Random& random, int64_t out, int64_t in, int64_t rows, int threads) {
  const int block = random.one_of({16, 32, 64, 128});
  const Rows x(random, rows, in, block, -128, 127);
  const int64_t count = random.number(1, 3);
  Coded w(kernels, random, out, count * block, 2, block);
  Exact<float> scale(w.weight.tiles() * count * kRows), main(rows * out), y(rows * out);
  Exact<int32_t> which(scale.size());
  for (int64_t i = 0; i < scale.size(); ++i)
    scale[i] = 1, which[i] = static_cast<int32_t>(random.number(0, x.blocks() - 1));
  for (int64_t i = 0; i < main.size(); ++i) main[i] = static_cast<float>(random.number(-9, 9));
  w.weight.blocks_per_scale = 1;
  w.weight.groups = count;
  w.weight.scale = scale.data();
  kernels.add_blocks(w.weight, which.data(), x.view(), main.data(), {y.data(), Float::f32, nullptr}, threads);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t o = 0; o < out; ++o) {
      int64_t sum = 0;
      for (int64_t k = 0; k < count * block; ++k) {
        const int64_t from = which[(o / kRows * count + k / block) * kRows + o % kRows] * int64_t{block} + k % block;
        if (from < in) sum += w.codes[o * count * block + k] * x.code(row, from);
      }
      check(y[row * out + o] == main[row * out + o] + static_cast<float>(sum) * x.scale[row], "added blocks");
    }
  }
}

}  // namespace

void test_variants(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    const int64_t out = random.number(1, 140), in = random.number(1, 600), rows = random.number(0, 9);
    const int threads = static_cast<int>(random.number(1, 4));
    test_triples(kernels, random, out, in, rows, threads);
    test_products(kernels, random, out, in, rows, threads);
    test_four_bits(kernels, random, out, in, rows, threads);
    test_blocks(kernels, random, out, in, rows, threads);
  }
}

}  // namespace bw::test
