#include "bindings/library.h"
#include "bindings/spans.h"

namespace nb = nanobind;

namespace bw {
namespace {

int read_all(const Library& self, Span data, int threads) {
  const Buffer memory = buffer(data);
  const auto* bytes = memory.as<const uint8_t>(memory.bytes, "data");
  checked_threads(threads);
  nb::gil_scoped_release release;
  return self.kernels->read_all(bytes, memory.bytes, threads);
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
