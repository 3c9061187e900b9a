#include "core/nearest.h"

#include "bindings/library.h"
#include "bindings/spans.h"

namespace nb = nanobind;

namespace bw {
namespace {

constexpr int64_t kMost = int64_t{1} << 40;

Groups groups_of(int64_t lines, int64_t length, int64_t size) {
  require(lines >= 1 && length >= 1 && size >= 1 && lines <= kMost && length <= kMost && size <= kMost,
          "groups have a wrong shape");
  product(product(lines, length), 8);
  return {lines, length, size};
}

Float type_of(int type) {
  require(type >= 0 && type <= 2, "the float type is 0 (fp32), 1 (fp16) or 2 (bf16)");
  return static_cast<Float>(type);
}

void* floats(Span span, Float type, int64_t count, const char* name) {
  if (type == Float::f32) return elements<float>(span, count, name);
  return elements<uint16_t>(span, count, name);
}

void limits(const Library& self, int64_t lines, int64_t length, int64_t size, int type, Span x, Span low, Span high,
            int threads) {
  const Groups groups = groups_of(lines, length, size);
  const void* values = floats(x, type_of(type), lines * length, "x");
  auto* least = elements<float>(low, groups.count(), "low");
  auto* most = elements<float>(high, groups.count(), "high");
  checked_threads(threads);
  nb::gil_scoped_release release;
  self.kernels->group_limits(groups, values, type_of(type), least, most, threads);
}

void round(const Library& self, const Groups& groups, const Nearest& nearest, int type, Span x, Span codes, Span values,
           int threads) {
  const int64_t count = groups.lines * groups.length;
  const void* from = floats(x, type_of(type), count, "x");
  auto* coded = given(codes) ? elements<uint8_t>(codes, count, "codes") : nullptr;
  void* rounded = given(values) ? floats(values, type_of(type), count, "values") : nullptr;
  require(coded || rounded, "neither codes nor values are asked for");
  checked_threads(threads);
  nb::gil_scoped_release release;
  self.kernels->round_groups(groups, nearest, from, type_of(type), coded, rounded, threads);
}

void to_integers(const Library& self, int64_t lines, int64_t length, int64_t size, Span scale, Span zero, float low,
                 float high, int type, Span x, Span codes, Span values, int threads) {
  const Groups groups = groups_of(lines, length, size);
  require(high >= low && high - low <= 255, "codes have at most 8 bits");
  Nearest nearest;
  nearest.scale = elements<const float>(scale, groups.count(), "scale");
  if (given(zero)) nearest.zero = elements<const float>(zero, groups.count(), "zero");
  nearest.low = low;
  nearest.high = high;
  round(self, groups, nearest, type, x, codes, values, threads);
}

void to_levels(const Library& self, int64_t lines, int64_t length, int64_t size, Span scale, int count, Span borders,
               Span levels, Span level_codes, int type, Span x, Span codes, Span values, int threads) {
  const Groups groups = groups_of(lines, length, size);
  require(count >= 1 && count <= 64, "a table has 1 to 64 levels");
  Nearest nearest;
  nearest.kind = Nearest::table;
  nearest.scale = elements<const float>(scale, groups.count(), "scale");
  nearest.count = count;
  nearest.borders = elements<const float>(borders, count - 1, "borders");
  nearest.levels = elements<const float>(levels, 2 * count, "levels");
  nearest.codes = elements<const float>(level_codes, 2 * count, "codes of the levels");
  round(self, groups, nearest, type, x, codes, values, threads);
}

}  // namespace

void bind_nearest(LibraryClass& library) {
  library.def("group_limits", limits);
  library.def("round_to_integers", to_integers);
  library.def("round_to_levels", to_levels);
}

}  // namespace bw
