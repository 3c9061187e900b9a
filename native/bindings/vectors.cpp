// Searches of vector codebooks.
#include "core/vectors.h"

#include <limits>

#include "bindings/library.h"
#include "bindings/spans.h"

namespace nb = nanobind;

namespace bw {
namespace {

VectorTables make_lattice(const Weight& weight, Span patterns, Span values) {
  require(weight.bits >= 2 && weight.bits <= 4, "points of E8P have 2 to 4 bits");
  require(weight.levels == Levels::affine && weight.block % 32 == 0, "points of E8P are blocks of 32 integers");
  VectorTables tables;
  tables.bits = weight.bits;
  tables.lattice.patterns = elements<const uint8_t>(patterns, weight.bits == 3 ? 6 * 256 : 2 * 256, "patterns");
  tables.lattice.values = elements<const uint8_t>(values, 2 * 16, "values");
  return tables;
}

VectorTables make_additive(int64_t out, int64_t in, int64_t books, int64_t index_bytes, int64_t group, Span codes,
                           Span entries, Span scale) {
  require(out >= 1 && in >= kSpan && in % kSpan == 0 && out <= (int64_t{1} << 31) && in <= (int64_t{1} << 31),
          "the weight has a wrong shape");
  require(books >= 1 && books <= 8 && (index_bytes == 1 || index_bytes == 2), "codebooks have 256 or 65536 entries");
  require(group >= in || (group >= 16 && group % 16 == 0), "a scale serves 16 inputs or a multiple, or all");
  AdditiveWeight weight;
  weight.out = out;
  weight.in = in;
  weight.books = books;
  weight.index_bytes = index_bytes;
  weight.group = group < in ? group : in;
  weight.codes = elements<const uint8_t>(codes, product(out, weight.row_bytes()), "codes");
  weight.entries = elements<const uint16_t>(entries, books * (int64_t{1} << 8 * index_bytes) * kSpan, "entries");
  weight.scale = elements<const float>(scale, product(out, weight.groups()), "scale");
  VectorTables tables;
  tables.additive = weight;
  return tables;
}

constexpr int64_t kWhole = 64;  // entries that a search compares at once

// rows[books][entries][span], half[books][entries].
void search(const Library& self, int64_t count, int64_t books, int64_t entries, int64_t span, int64_t beam, Span x,
            Span rows, Span half, Span index, int threads) {
  require(count >= 0 && books >= 1 && books <= 64 && entries >= 1 && entries <= (1 << 24) && span >= 1 && span <= 1024,
          "codebooks have a wrong shape");
  require(beam >= 1 && beam <= 1024, "a beam keeps 1 to 1024 sums");
  Books all;
  all.books = books;
  all.entries = entries;
  all.span = span;
  all.beam = beam;
  all.padded = (entries + kWhole - 1) / kWhole * kWhole;
  all.rows = elements<const float>(rows, product(product(books, entries), span), "codebooks");
  const float* norms = elements<const float>(half, product(books, entries), "half");
  const float* source = elements<const float>(x, product(count, span), "x");
  int32_t* target = elements<int32_t>(index, product(count, books), "index");
  checked_threads(threads);
  nb::gil_scoped_release release;
  const auto columns = scratch<float>(product(books * span, all.padded));
  const auto padded = scratch<float>(product(books, all.padded));
  for (int64_t m = 0; m < books; ++m) {
    for (int64_t e = 0; e < all.padded; ++e) {
      const bool there = e < entries;
      padded.get()[m * all.padded + e] = there ? norms[m * entries + e] : std::numeric_limits<float>::infinity();
      for (int64_t j = 0; j < span; ++j)
        columns.get()[(m * span + j) * all.padded + e] = there ? all.rows[(m * entries + e) * span + j] : 0.0f;
    }
  }
  all.columns = columns.get();
  all.half = padded.get();
  self.kernels->beam_search(all, source, count, target, threads);
}

// base[256][8] and half[256].
void nearest(const Library& self, int64_t count, Span x, Span base, Span half, Span codes, int threads) {
  require(count >= 0, "vectors are counted");
  const float* points = elements<const float>(base, 256 * kSpan, "base");
  const float* source = elements<const float>(x, product(count, kSpan), "x");
  int32_t* target = elements<int32_t>(codes, count, "codes");
  alignas(64) float sizes[kSpan * 256], penalty[2 * 256];
  uint8_t odd[256];
  for (int p = 0; p < 256; ++p) {
    for (int j = 0; j < kSpan; ++j) {
      const float value = points[p * kSpan + j];
      require(value > 0 || (value < 0 && j == kSpan - 1), "a base point is positive but for its last coordinate");
      sizes[j * 256 + p] = value < 0 ? -value : value;
    }
    odd[p] = points[p * kSpan + kSpan - 1] < 0;
    penalty[p] = odd[p] ? 2.0f : 0.0f;
    penalty[256 + p] = odd[p] ? 0.0f : 2.0f;
  }
  const BasePoints all{sizes, elements<const float>(half, 256, "half"), penalty, odd};
  checked_threads(threads);
  nb::gil_scoped_release release;
  self.kernels->nearest_e8p(all, source, count, target, threads);
}

}  // namespace

void bind_vectors(nb::module_& module, LibraryClass& library) {
  nb::class_<VectorTables>(module, "VectorTables");
  module.def("lattice_tables", make_lattice);
  module.def("additive_tables", make_additive);
  library.def("beam_search", search);
  library.def("nearest_e8p", nearest);
}

}  // namespace bw
