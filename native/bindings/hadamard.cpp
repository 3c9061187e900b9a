#include "core/hadamard.h"

#include "bindings/library.h"
#include "bindings/spans.h"

namespace nb = nanobind;

namespace bw {
namespace {

void run(const Library& self, int64_t rows, int64_t dim, int64_t base, int64_t power, Span factor, Span before,
         Span after, float scale, int type, Span x, Span y, int threads) {
  require(rows >= 0 && dim >= 1 && base >= 1 && power >= 16 && dim <= (int64_t{1} << 40), "there are no channels");
  require((power & (power - 1)) == 0 && power <= dim, "the fast part is a power of two from 16 on");
  require(base <= dim / power && dim % (base * power) == 0, "the blocks do not divide the channels");
  require(base == 1 || base % 4 == 0, "the dense part is of order 1 or a multiple of 4");
  require(type >= 0 && type <= 2, "the float type is 0 (fp32), 1 (fp16) or 2 (bf16)");
  Hadamard transform;
  transform.rows = rows;
  transform.dim = dim;
  transform.base = base;
  transform.power = power;
  if (base > 1) transform.factor = elements<const float>(factor, product(base, base), "factor");
  if (given(before)) transform.before = elements<const float>(before, dim, "before");
  if (given(after)) transform.after = elements<const float>(after, dim, "after");
  transform.scale = scale;
  transform.type = static_cast<Float>(type);
  const int64_t count = product(rows, dim);
  const bool wide = transform.type == Float::f32;
  const void* from =
      wide ? static_cast<const void*>(elements<const float>(x, count, "x")) : elements<const uint16_t>(x, count, "x");
  void* to = wide ? static_cast<void*>(elements<float>(y, count, "y")) : elements<uint16_t>(y, count, "y");
  checked_threads(threads);
  nb::gil_scoped_release release;
  self.kernels->hadamard(transform, from, to, threads);
}

}  // namespace

void bind_hadamard(LibraryClass& library) { library.def("hadamard", run); }

}  // namespace bw
