#include <nanobind/stl/tuple.h>

#include <tuple>

#include "bindings/checks.h"
#include "bindings/library.h"

namespace nb = nanobind;

namespace bw {
namespace {

using Span = std::tuple<uintptr_t, int64_t>;

int read_all(const Library& self, Span data, int threads) {
  const Buffer buffer{std::get<0>(data), std::get<1>(data)};
  const auto* bytes = buffer.as<const uint8_t>(buffer.bytes, "data");
  checked_threads(threads);
  nb::gil_scoped_release release;
  return self.kernels->read_all(bytes, buffer.bytes, threads);
}

int multiply_bytes(const Library& self, int64_t turns, int threads) {
  require(turns >= 1 && turns <= (int64_t{1} << 30), "turns are 1 to 2^30");
  checked_threads(threads);
  nb::gil_scoped_release release;
  return self.kernels->multiply_bytes(turns, threads);
}

}  // namespace

void bind_probe(LibraryClass& library) {
  library.def("read_all", read_all);
  library.def("multiply_bytes", multiply_bytes);
}

}  // namespace bw
