#include "core/factor.h"

#include "bindings/library.h"
#include "bindings/spans.h"

namespace nb = nanobind;

namespace bw {
namespace {

// Returns whether all pivots were positive.
bool factorize(const Library& self, int64_t size, Span matrix, Span diagonal, Span upper, Span pivots, int threads) {
  require(size >= 1 && size <= (int64_t{1} << 24), "the matrix has a wrong shape");
  Factorization work;
  work.size = size;
  work.matrix = elements<const float>(matrix, product(size, size), "matrix");
  work.diagonal = elements<const float>(diagonal, size, "diagonal");
  work.upper = elements<float>(upper, product(size, size), "upper");
  work.pivots = elements<float>(pivots, size, "pivots");
  checked_threads(threads);
  nb::gil_scoped_release release;
  const auto packed = scratch<float>(product(size, size < kFactorBlock ? size : kFactorBlock));
  return self.kernels->upper_factor(work, packed.get(), threads);
}

}  // namespace

void bind_factor(LibraryClass& library) { library.def("upper_factor", factorize); }

}  // namespace bw
