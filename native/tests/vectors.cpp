// Searches of vector codebooks and products with their codes against plain loops.
#include "core/vectors.h"

#include <limits>
#include <vector>

#include "tests/ways.h"

namespace bw::test {
namespace {

// With a beam of one the search takes, codebook by codebook, the entry nearest to what is left: the same operations.
void search(const Kernels& kernels, Random& random, int threads) {
  Books books;
  books.books = random.number(1, 3), books.entries = random.number(1, 130), books.span = random.number(1, 9);
  books.padded = (books.entries + 63) / 64 * 64, books.beam = random.one_of<int64_t>({1, 1, 2, 5});
  const int64_t count = random.number(0, 150);
  Exact<float> rows(books.books * books.entries * books.span), columns(books.books * books.span * books.padded);
  Exact<float> half(books.books * books.padded), x(count * books.span);
  fill_normal(random, rows);
  fill_normal(random, x);
  for (int64_t i = 0; i < half.size(); ++i) {
    const int64_t m = i / books.padded, e = i % books.padded;
    half[i] = e < books.entries ? 0.0f : std::numeric_limits<float>::infinity();
    for (int64_t j = 0; j < books.span && e < books.entries; ++j) {
      const float value = rows[(m * books.entries + e) * books.span + j];
      columns[(m * books.span + j) * books.padded + e] = value;
      half[i] += value * value / 2;
    }
  }
  books.columns = columns.data(), books.half = half.data(), books.rows = rows.data();
  Exact<int32_t> index(count * books.books);
  kernels.beam_search(books, x.data(), count, index.data(), threads);
  for (int64_t v = 0; v < count; ++v) {
    std::vector<float> rest(x.data() + v * books.span, x.data() + (v + 1) * books.span);
    float gain = 0;
    for (int64_t m = 0; m < books.books; ++m) {
      int64_t best = 0;
      float most = -std::numeric_limits<float>::infinity();
      for (int64_t e = 0; e < books.entries; ++e) {
        const float* row = rows.data() + (m * books.entries + e) * books.span;
        float total = rest[0] * row[0];
        for (int64_t j = 1; j < books.span; ++j) total = total + rest[static_cast<size_t>(j)] * row[j];
        total = gain + (total - half[m * books.padded + e]);
        if (total > most) most = total, best = e;
      }
      const int64_t got = index[v * books.books + m];
      check(got >= 0 && got < books.entries, "an index is that of an entry");
      if (books.beam == 1) check(got == best, "the nearest entry");
      gain = most;
      for (int64_t j = 0; j < books.span; ++j)
        rest[static_cast<size_t>(j)] -= rows[(m * books.entries + best) * books.span + j];
    }
  }
}

void additive(const Kernels& kernels, Random& random, int threads) {
  AdditiveWeight w;
  w.out = random.number(1, 40), w.in = kSpan * random.number(1, 20);
  w.books = random.number(1, 3), w.index_bytes = random.one_of<int64_t>({1, 1, 1, 2});
  w.group = random.coin() ? w.in : random.one_of<int64_t>({16, 32, 64});
  w.group = std::min(w.group, w.in);
  const int64_t entries = int64_t{1} << 8 * w.index_bytes;
  Exact<uint8_t> codes(w.out * w.row_bytes());
  Exact<uint16_t> halves(w.books * entries * kSpan);
  Exact<float> scale(w.out * w.groups());
  for (int64_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(random.number(0, 255));
  for (int64_t i = 0; i < halves.size(); ++i) halves[i] = to_f16(static_cast<float>(i % 251) / 100 - 1);
  fill_normal(random, scale);
  w.codes = codes.data(), w.entries = halves.data(), w.scale = scale.data();
  const Rows x = make_rows(random, w.in);
  const Bias bias(random, w.out);
  Result y(x.type, x.rows * w.out);
  kernels.additive_float(w, x.data(), x.type, x.rows, y.output(bias.given()), threads);
  check_sums(x, y, w.out, bias, "a sum of entries", [&](int64_t row, int64_t out, int64_t k) {
    double value = 0;
    for (int64_t m = 0; m < w.books; ++m) {
      const uint8_t* code = codes.data() + out * w.row_bytes() + (k / kSpan * w.books + m) * w.index_bytes;
      const int64_t entry = w.index_bytes == 1 ? code[0] : code[0] | code[1] << 8;
      value += from_f16(halves[(m * entries + entry) * kSpan + k % kSpan]);
    }
    return value * scale[out * w.groups() + k / w.group] * x.values[row * w.in + k];
  });
}

struct Points {
  Exact<uint8_t> patterns, values;

  // Coordinate j of the point of a pattern and its signs.
  int point(int pattern, int signs, int first, int j) const {
    const int low = patterns[pattern], high = patterns[256 + pattern];
    int last = ((low & 0x55) ^ (high & 0x55)) ^ (signs & 0x7f), parity = 0;
    for (; last; last >>= 1) parity ^= last & 1;
    const int size = (j < 4 ? low : high) >> 2 * (j % 4) & 3, sign = j < 7 ? signs >> j & 1 : parity;
    return values[first + (size | sign << 2 | (signs >> 7) << 3)];
  }
};

// Bytes of the layout are drawn, and read as core/vectors.h describes them.
void lattice(const Kernels& kernels, Random& random, int threads) {
  Weight w = random_weight(random);
  w.bits = static_cast<int>(random.number(2, 4)), w.levels = Levels::affine;
  w.block = random.one_of({32, 64, 128, 256});
  w.blocks = (w.in + w.block - 1) / w.block;
  w.groups = (w.blocks + w.blocks_per_scale - 1) / w.blocks_per_scale;
  Case c = make_case(random, w);
  for (int64_t i = 0; i < c.packed.size(); ++i) c.packed[i] = static_cast<uint8_t>(random.number(0, 255));
  Points points{Exact<uint8_t>(w.bits == 3 ? 6 * 256 : 2 * 256), Exact<uint8_t>(32)};
  for (int64_t i = 0; i < points.patterns.size(); ++i) points.patterns[i] = static_cast<uint8_t>(random.number(0, 255));
  for (int64_t i = 0; i < 32; ++i) points.values[i] = static_cast<uint8_t>(random.number(0, 63));
  const auto code = [&](int64_t out, int64_t k) {
    const uint8_t* run = c.packed.data() + out / kRows * w.tile_bytes() + k / w.block * w.block_bytes() +
                         k % w.block / 32 * w.bits * kVector + out % kRows * 4 + k % 32 / kSpan;
    const int j = static_cast<int>(k % kSpan);
    int value = points.point(run[0], run[kVector], 0, j);
    if (w.bits == 4) value += points.point(run[2 * kVector], run[3 * kVector], 16, j);
    if (w.bits == 3) {
      const int both = points.patterns[512 + 256 * (j / 2) + run[2 * kVector]];
      value += points.values[16 + (j % 2 ? both >> 4 : both & 15)];
    }
    return value;
  };
  const LatticeTables tables{points.patterns.data(), points.values.data()};
  const Rows x = make_rows(random, w.in);
  const int64_t places = w.blocks * x.rows;
  Exact<float> floats(places * w.block), sums(places);
  kernels.gather_rows(x.data(), x.type, x.rows, w.in, w.block, floats.data(), sums.data(), threads);
  exchange_spans(floats.data(), floats.size());
  Coded coded = quantized(kernels, x, w.block, threads);
  const Coded plain = quantized(kernels, x, w.block, threads);
  exchange_spans(coded.codes.data(), coded.codes.size());
  const Bias bias(random, w.out);
  Result y(x.type, x.rows * w.out), z(x.type, x.rows * w.out);
  kernels.lattice_float(c.weight, tables, {x.rows, w.block, w.blocks, floats.data(), sums.data()},
                        y.output(bias.given()), threads);
  kernels.lattice_int8(c.weight, tables, coded.view(), z.output(bias.given()), threads);
  const auto level = [&](int64_t out, int64_t k) {
    const int64_t place = c.parameter(out, k);
    return c.scale_at(place) * (code(out, k) - c.zero_at(place));
  };
  const auto more = [&](int64_t out, int64_t k) { return 512 * c.scale_at(c.parameter(out, k)); };
  check_sums(
      x, y, w.out, bias, "points in fp32: " + c.text,
      [&](int64_t row, int64_t out, int64_t k) { return level(out, k) * x.values[row * w.in + k]; },
      [&](int64_t row, int64_t out, int64_t k) { return more(out, k) * x.values[row * w.in + k]; });
  check_sums(
      x, z, w.out, bias, "points in integers: " + c.text,
      [&](int64_t row, int64_t out, int64_t k) { return level(out, k) * plain.value(row, k); },
      [&](int64_t row, int64_t out, int64_t k) { return more(out, k) * plain.value(row, k); });
}

// Every instruction set finds the same points.
void nearest(const Kernels& kernels, Random& random, int threads) {
  const int64_t count = random.number(0, 150);
  Exact<float> sizes(kSpan * 256), half(256), penalty(512), x(count * kSpan);
  Exact<uint8_t> odd(256);
  for (int64_t i = 0; i < sizes.size(); ++i) sizes[i] = 0.5f + static_cast<float>(random.number(0, 3));
  fill_normal(random, x);
  for (int64_t p = 0; p < 256; ++p) {
    for (int64_t j = 0; j < kSpan; ++j) half[p] += sizes[j * 256 + p] * sizes[j * 256 + p] / 2;
    odd[p] = random.coin();
    penalty[p] = odd[p] ? 2.0f : 0.0f, penalty[256 + p] = 2.0f - penalty[p];
  }
  const BasePoints base{sizes.data(), half.data(), penalty.data(), odd.data()};
  Exact<int32_t> codes(count), wanted(count);
  kernels.nearest_e8p(base, x.data(), count, codes.data(), threads);
  size_t tables;
  const Kernels* const* all = available(&tables);
  all[tables - 1]->nearest_e8p(base, x.data(), count, wanted.data(), 1);
  for (int64_t i = 0; i < count; ++i)
    check(codes[i] == wanted[i] && codes[i] >= 0 && codes[i] < 65536, "the nearest point");
}

}  // namespace

void test_vectors(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    const int threads = static_cast<int>(random.number(1, 4));
    search(kernels, random, threads);
    additive(kernels, random, threads);
    lattice(kernels, random, threads);
    nearest(kernels, random, threads);
  }
}

}  // namespace bw::test
