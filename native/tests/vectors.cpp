// Searches and products of vector codes against plain loops.
#include "core/vectors.h"

#include <algorithm>
#include <limits>

#include "core/half.h"
#include "tests/check.h"

namespace bw::test {
namespace {

// Sums of every combination of entries, one codebook after the other with all partial sums kept: a beam without end.
void check_search(const Kernels& kernels, Random& random) {
  Books books;
  books.books = random.number(1, 2);
  books.entries = random.one_of<int64_t>({1, 3, 16, 17, 64, 65});
  books.span = random.one_of<int64_t>({1, 2, 5, 8});
  books.padded = (books.entries + 63) / 64 * 64;
  books.beam = books.books == 1 ? random.number(1, 3) : books.entries;
  const int64_t count = random.one_of<int64_t>({0, 1, 63, 64, 70});
  Exact<float> x(count * books.span), rows(books.books * books.entries * books.span);
  Exact<float> columns(books.books * books.span * books.padded), half(books.books * books.padded);
  Exact<int32_t> index(count * books.books);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = random.normal();
  for (int64_t i = 0; i < rows.size(); ++i) rows[i] = random.normal();
  for (int64_t i = 0; i < half.size(); ++i) half[i] = std::numeric_limits<float>::infinity();
  for (int64_t m = 0; m < books.books; ++m)
    for (int64_t e = 0; e < books.entries; ++e) {
      float norm = 0;
      for (int64_t j = 0; j < books.span; ++j) {
        const float value = rows[(m * books.entries + e) * books.span + j];
        columns[(m * books.span + j) * books.padded + e] = value;
        norm += value * value;
      }
      half[m * books.padded + e] = norm / 2;
    }
  books.columns = columns.data();
  books.half = half.data();
  books.rows = rows.data();
  kernels.beam_search(books, x.data(), count, index.data(), static_cast<int>(random.number(1, 4)));
  const auto distance = [&](int64_t v, int64_t first, int64_t second) {
    double total = 0;
    for (int64_t j = 0; j < books.span; ++j) {
      double rest = x[v * books.span + j] - static_cast<double>(rows[first * books.span + j]);
      if (books.books == 2) rest -= rows[(books.entries + second) * books.span + j];
      total += rest * rest;
    }
    return total;
  };
  for (int64_t v = 0; v < count; ++v) {
    double best = std::numeric_limits<double>::infinity();
    for (int64_t a = 0; a < books.entries; ++a)
      for (int64_t b = 0; b < (books.books == 2 ? books.entries : 1); ++b) best = std::min(best, distance(v, a, b));
    const int64_t a = index[v * books.books], b = books.books == 2 ? index[v * 2 + 1] : 0;
    check(a >= 0 && a < books.entries && b >= 0 && b < books.entries, "an index is no entry");
    check(distance(v, a, b) < best + 1e-4, "a beam that keeps everything finds the best sum");
  }
}

// Base points of some made-up lattice: patterns of halves of odd numbers, the last coordinate of either sign.
void check_nearest(const Kernels& kernels, Random& random) {
  const int64_t count = random.one_of<int64_t>({0, 1, 64, 65});
  Exact<float> sizes(kSpan * 256), half(256), penalty(512), x(count * kSpan);
  Exact<uint8_t> odd(256);
  Exact<int32_t> codes(count);
  for (int p = 0; p < 256; ++p) {
    float norm = 0;
    for (int j = 0; j < kSpan; ++j) {
      sizes[j * 256 + p] = 0.5f + static_cast<float>(random.number(0, 2));
      norm += sizes[j * 256 + p] * sizes[j * 256 + p];
    }
    half[p] = norm / 2;
    odd[p] = random.coin();
    penalty[p] = odd[p] ? 2.0f : 0.0f;
    penalty[256 + p] = odd[p] ? 0.0f : 2.0f;
  }
  for (int64_t i = 0; i < x.size(); ++i) x[i] = random.normal() * 1.5f;
  const BasePoints base{sizes.data(), half.data(), penalty.data(), odd.data()};
  kernels.nearest_e8p(base, x.data(), count, codes.data(), static_cast<int>(random.number(1, 4)));
  const auto distance = [&](int64_t v, int64_t code) {
    const int64_t pattern = code & 255;
    int minus = 0;
    double total = 0;
    for (int j = 0; j < kSpan; ++j) {
      bool negative = code >> (8 + j) & 1;
      if (j < kSpan - 1) minus += negative;
      if (j == kSpan - 1) negative = (minus % 2 != 0) != (odd[pattern] != 0);
      const double value = (negative ? -1.0 : 1.0) * sizes[j * 256 + pattern] + (code >> 15 ? -0.25 : 0.25);
      total += (x[v * kSpan + j] - value) * (x[v * kSpan + j] - value);
    }
    return total;
  };
  for (int64_t v = 0; v < count; ++v) {
    double best = std::numeric_limits<double>::infinity();
    for (int64_t code = 0; code < 65536; ++code) best = std::min(best, distance(v, code));
    check(codes[v] >= 0 && codes[v] < 65536 && distance(v, codes[v]) < best + 1e-4, "the nearest point of all");
  }
}

// Numbers of a lattice weight: bytes of any tables, planes of any codes.
struct Lattice {
  Weight weight;
  Exact<uint8_t> codes, patterns, values;
  Exact<float> scale;

  Lattice(Random& random, int bits)
      : weight(shape(random, bits)),
        codes(weight.tiles() * weight.tile_bytes()),
        patterns(bits == 3 ? 1536 : 512),
        values(32),
        scale(weight.tiles() * weight.groups * kRows) {
    for (int64_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(random.number(0, 255));
    for (int64_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<uint8_t>(random.number(0, 255));
    for (int64_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint8_t>(random.number(0, bits == 4 ? 99 : 15));
    for (int64_t i = 0; i < scale.size(); ++i) scale[i] = random.uniform(0.5f, 2.0f);
    weight.codes = codes.data();
    weight.scale = scale.data();
    weight.zero = 11;
  }
  static Weight shape(Random& random, int bits) {
    Weight weight;
    weight.bits = bits;
    weight.block = random.one_of({32, 64, 128});
    weight.out = random.number(1, 40);
    weight.in = random.number(1, 300);
    weight.blocks = (weight.in + weight.block - 1) / weight.block;
    weight.blocks_per_scale = random.number(1, 2);
    weight.groups = (weight.blocks + weight.blocks_per_scale - 1) / weight.blocks_per_scale;
    return weight;
  }
  // The byte of a point of the first or second codebook.
  int point(const uint8_t* plane, const uint8_t* table, int row, int s, int j) const {
    const int pattern = plane[4 * row + s], signs = plane[kVector + 4 * row + s];
    const int low = patterns[pattern], high = patterns[256 + pattern];
    int sign = signs >> j & 1;
    if (j == kSpan - 1) {
      sign = 0;
      for (int i = 0; i < 7; ++i) sign ^= signs >> i & 1;
      for (int i = 0; i < 8; i += 2) sign ^= (low >> i & 1) ^ (high >> i & 1);
    }
    return table[((j < 4 ? low : high) >> 2 * (j % 4) & 3) | sign << 2 | (signs >> 7) << 3];
  }
  double value(int64_t row, int64_t input) const {
    const int64_t block = input / weight.block, run = input % weight.block / 32;
    const int s = static_cast<int>(input % 32 / kSpan), j = static_cast<int>(input % kSpan);
    const int lane = static_cast<int>(row % kRows);
    const uint8_t* planes =
        weight.codes + row / kRows * weight.tile_bytes() + block * weight.block_bytes() + run * weight.bits * kVector;
    int number = point(planes, values.data(), lane, s, j);
    if (weight.bits == 4) number += point(planes + 2 * kVector, values.data() + 16, lane, s, j);
    if (weight.bits == 3) {
      const int index = planes[2 * kVector + 4 * lane + s];
      number += values[16 + (patterns[512 + 256 * (j / 2) + index] >> 4 * (j % 2) & 15)];
    }
    const int64_t place = (row / kRows * weight.groups + block / weight.blocks_per_scale) * kRows + lane;
    return scale[place] * static_cast<double>(number - weight.zero);
  }
};

void check_lattice(const Kernels& kernels, Random& random) {
  Lattice lattice(random, static_cast<int>(random.number(2, 4)));
  const Weight& weight = lattice.weight;
  const int64_t rows = random.number(0, 11), places = weight.blocks * rows;
  Exact<float> x(rows * weight.in), y(rows * weight.out), cut(places * weight.block), sums(places), scale(places);
  Exact<int8_t> codes(places * weight.block);
  Exact<int32_t> totals(places);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = random.normal();
  const int threads = static_cast<int>(random.number(1, 4));
  const LatticeTables tables{lattice.patterns.data(), lattice.values.data()};
  const auto agree = [&](double share, const char* what) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t o = 0; o < weight.out; ++o) {
        double wanted = 0, size = 1e-3;
        for (int64_t i = 0; i < weight.in; ++i) {
          const double term = lattice.value(o, i) * x[r * weight.in + i];
          wanted += term;
          size += std::abs(term);
        }
        check(std::abs(wanted - y[r * weight.out + o]) <= share * size, what);
      }
  };
  kernels.gather_rows(x.data(), Float::f32, rows, weight.in, weight.block, cut.data(), sums.data(), threads);
  exchange_spans(cut.data(), cut.size());
  kernels.lattice_float(weight, tables, {rows, weight.block, weight.blocks, cut.data(), sums.data()},
                        {y.data(), Float::f32, nullptr}, threads);
  agree(1e-5, "points in fp32");
  kernels.quantize_rows(x.data(), Float::f32, rows, weight.in, weight.block, codes.data(), scale.data(), totals.data(),
                        threads);
  exchange_spans(codes.data(), codes.size());
  kernels.lattice_int8(weight, tables, {rows, weight.block, weight.blocks, codes.data(), scale.data(), totals.data()},
                       {y.data(), Float::f32, nullptr}, threads);
  agree(3e-2, "points in integers");
}

void check_additive(const Kernels& kernels, Random& random) {
  AdditiveWeight weight;
  weight.out = random.number(1, 40);
  weight.in = kSpan * random.number(1, 30);
  weight.books = random.number(1, 4);
  weight.index_bytes = random.number(1, 2);
  weight.group = random.coin() ? weight.in : 16 * random.number(1, 3);
  const int64_t entries = int64_t{1} << 8 * weight.index_bytes, rows = random.number(0, 9);
  Exact<uint8_t> codes(weight.out * weight.row_bytes());
  Exact<uint16_t> halves(weight.books * entries * kSpan);
  Exact<float> scale(weight.out * weight.groups()), x(rows * weight.in), y(rows * weight.out);
  for (int64_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(random.number(0, 255));
  for (int64_t i = 0; i < halves.size(); ++i) halves[i] = to_f16(static_cast<float>(i % 97 - 48) / 16.0f);
  for (int64_t i = 0; i < scale.size(); ++i) scale[i] = random.uniform(0.5f, 2.0f);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = random.normal();
  weight.codes = codes.data();
  weight.entries = halves.data();
  weight.scale = scale.data();
  kernels.additive_float(weight, x.data(), Float::f32, rows, {y.data(), Float::f32, nullptr},
                         static_cast<int>(random.number(1, 4)));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < weight.out; ++o) {
      double wanted = 0, size = 1e-3;
      for (int64_t i = 0; i < weight.in; ++i) {
        double value = 0;
        for (int64_t m = 0; m < weight.books; ++m) {
          const uint8_t* at =
              codes.data() + o * weight.row_bytes() + (i / kSpan * weight.books + m) * weight.index_bytes;
          const int64_t index = weight.index_bytes == 1 ? at[0] : at[0] | at[1] << 8;
          value += from_f16(halves[(m * entries + index) * kSpan + i % kSpan]);
        }
        const double term = value * scale[o * weight.groups() + i / weight.group] * x[r * weight.in + i];
        wanted += term;
        size += std::abs(term);
      }
      check(std::abs(wanted - y[r * weight.out + o]) <= 1e-5 * size, "sums of entries");
    }
}

}  // namespace

void test_vectors(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    check_search(kernels, random);
    // A plain search of all points is long.
    if (turn % 50 == 0) check_nearest(kernels, random);
    check_lattice(kernels, random);
    if (turn % 4 == 0) check_additive(kernels, random);
  }
}

}  // namespace bw::test
