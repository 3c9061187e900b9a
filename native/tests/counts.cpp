// Products bit by bit and by tables of sums, which are exact in integers, against sums of what codes mean.
#include "tests/ways.h"

namespace bw::test {
namespace {

// An affine weight of random shape; the layouts here are not that of packed weights.
Weight affine(Random& random) {
  Weight w = random_weight(random);
  w.levels = Levels::affine;
  w.block = random.one_of({32, 64, 128});
  w.blocks = (w.in + w.block - 1) / w.block;
  w.groups = (w.blocks + w.blocks_per_scale - 1) / w.blocks_per_scale;
  return w;
}

// What the integer kernels multiply: scale * (code - zero) of the weight times the activation.
auto part_of(const Case& c, const Coded& coded) {
  return [&](int64_t row, int64_t out, int64_t k) {
    const int64_t place = c.parameter(out, k);
    return c.scale_at(place) * (c.codes[out * c.weight.in + k] - c.zero_at(place)) * coded.value(row, k);
  };
}
auto more_of(const Case& c, const Coded& coded) {
  return
      [&](int64_t row, int64_t out, int64_t k) { return 512 * c.scale_at(c.parameter(out, k)) * coded.value(row, k); };
}

void bits(const Kernels& kernels, Random& random, int threads) {
  Case c = make_case(random, affine(random));
  Weight& w = c.weight;
  // Every bit of the codes is a weight of one bit.
  Weight plane = w;
  plane.bits = 1;
  const int64_t plane_bytes = plane.tiles() * plane.tile_bytes();
  Exact<uint8_t> planes(plane_bytes * w.bits), one(w.out * w.in);
  for (int bit = 0; bit < w.bits; ++bit) {
    for (int64_t i = 0; i < one.size(); ++i) one[i] = c.codes[i] >> bit & 1;
    kernels.pack_weight(plane, one.data(), planes.data() + bit * plane_bytes, threads);
  }
  w.codes = planes.data();
  Exact<int32_t> counts(w.tiles() * w.groups * kRows);
  for (int64_t row = 0; row < w.out; ++row)
    for (int64_t k = 0; k < w.in; ++k) counts[c.parameter(row, k)] += c.codes[row * w.in + k];
  const Rows x = make_rows(random, w.in);
  const int width = static_cast<int>(random.number(2, 8));
  Coding coding;
  coding.run = w.in;
  coding.low = -static_cast<float>(1 << (width - 1));
  coding.high = -coding.low - 1;
  coding.steps = coding.high;
  Coded coded(x.rows, w.in, w.block);
  kernels.code_rows(coding, x.data(), x.type, x.rows, w.in, w.block, coded.codes.data(), coded.scale.data(),
                    coded.sums.data(), nullptr, nullptr, threads);
  const Bias bias(random, w.out);
  Result y(x.type, x.rows * w.out);
  kernels.linear_bits(w, coded.view(), width, static_cast<int32_t>(coding.low), counts.data(), y.output(bias.given()),
                      threads);
  check_sums(x, y, w.out, bias, "a product bit by bit: " + c.text, part_of(c, coded), more_of(c, coded));
}

// The nibbles of one row and block: of each bit, 4 inputs at a time; of ternary digits, 2 inputs as 3 d0 + d1.
int nibble(const Case& c, int64_t row, int64_t first, int plane, bool ternary) {
  const auto code = [&](int64_t k) { return k < c.weight.in ? int{c.codes[row * c.weight.in + k]} : 0; };
  if (ternary) return 3 * code(first) + code(first + 1);
  int found = 0;
  for (int i = 0; i < 4; ++i) found |= (code(first + i) >> plane & 1) << i;
  return found;
}

void sums(const Kernels& kernels, Random& random, int threads) {
  const bool ternary = random.coin();
  Weight shape = affine(random);
  shape.out = 64 * random.number(1, 2);
  shape.bits = ternary ? 2 : static_cast<int>(random.number(1, 4));
  Case c = make_case(random, shape);
  Weight& w = c.weight;
  if (ternary)
    for (int64_t i = 0; i < c.codes.size(); ++i) c.codes[i] %= 3;
  const int64_t inputs = ternary ? 2 : 4, planes = ternary ? 1 : w.bits, pairs = w.block / inputs / 2;
  Exact<uint8_t> packed(w.out * w.blocks * planes * pairs);
  for (int64_t i = 0; i < packed.size(); ++i) {
    const int64_t pair = i / 64 % pairs, plane = i / 64 / pairs % planes, b = i / 64 / pairs / planes % w.blocks;
    const int64_t row = i / 64 / pairs / planes / w.blocks * 64 + i % 64, first = b * w.block + pair * 2 * inputs;
    packed[i] = static_cast<uint8_t>(nibble(c, row, first, static_cast<int>(plane), ternary) |
                                     nibble(c, row, first + inputs, static_cast<int>(plane), ternary) << 4);
  }
  w.codes = packed.data();
  const Rows x = make_rows(random, w.in);
  const Coded coded = quantized(kernels, x, w.block, threads);
  const Bias bias(random, w.out);
  Result y(x.type, x.rows * w.out);
  kernels.linear_sums(w, coded.view(), ternary, y.output(bias.given()), threads);
  check_sums(x, y, w.out, bias, "a product by tables of sums: " + c.text, part_of(c, coded), more_of(c, coded));
}

}  // namespace

void test_counts(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    const int threads = static_cast<int>(random.number(1, 4));
    bits(kernels, random, threads);
    sums(kernels, random, threads);
  }
}

}  // namespace bw::test
