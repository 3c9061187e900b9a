#include "core/moments.h"

#include "bindings/library.h"
#include "bindings/spans.h"

namespace nb = nanobind;

namespace bw {
namespace {

void add(const Library& self, int64_t tokens, int64_t dim, int type, Span x, Span total, bool wide, int threads) {
  require(tokens >= 0 && dim >= 1 && tokens <= (int64_t{1} << 31) && dim <= (int64_t{1} << 24),
          "the tokens have a wrong shape");
  require(type >= 0 && type <= 2, "the float type is 0 (fp32), 1 (fp16) or 2 (bf16)");
  Moments moments;
  moments.tokens = tokens;
  moments.dim = dim;
  moments.type = static_cast<Float>(type);
  const int64_t count = product(tokens, dim);
  moments.x = moments.type == Float::f32 ? static_cast<const void*>(elements<const float>(x, count, "x"))
                                         : elements<const uint16_t>(x, count, "x");
  if (wide) {
    moments.total64 = elements<double>(total, product(dim, dim), "total");
  } else {
    moments.total = elements<float>(total, product(dim, dim), "total");
  }
  checked_threads(threads);
  nb::gil_scoped_release release;
  const auto packed = scratch<float>(product(product(moments.tiles(), kMomentTile), tokens));
  self.kernels->add_moments(moments, packed.get(), threads);
}

}  // namespace

void bind_moments(LibraryClass& library) { library.def("add_moments", add); }

}  // namespace bw
