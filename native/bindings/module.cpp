#include "bindings/library.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

namespace nb = nanobind;

namespace bw {

namespace {

std::vector<std::string> instruction_sets() {
  size_t count;
  const Kernels* const* tables = available(&count);
  std::vector<std::string> names;
  for (size_t i = 0; i < count; ++i) names.emplace_back(tables[i]->name);
  return names;
}

Library open(const std::string& name) {
  size_t count;
  const Kernels* const* tables = available(&count);
  for (size_t i = 0; i < count; ++i)
    if (name == tables[i]->name) return {tables[i]};
  throw std::invalid_argument("this processor or this build has no instruction set " + name);
}

}  // namespace
}  // namespace bw

NB_MODULE(_core, module) {
  // Python keeps the opened libraries to its end, which is no leak.
  nanobind::set_leak_warnings(false);
  module.doc() = "Compiled kernels; use bitwright.native.";
  module.def("instruction_sets", bw::instruction_sets, "Names of the instruction sets that run here, fastest first.");
  bw::LibraryClass library(module, "Library", "The kernels of one instruction set.");
  library.def("__init__", [](bw::Library* self, const std::string& name) { new (self) bw::Library(bw::open(name)); });
  library.def_prop_ro("name", [](const bw::Library& self) { return self.kernels->name; });
  bw::bind_bits(library);
  bw::bind_factor(library);
  bw::bind_hadamard(library);
  bw::bind_kmeans(library);
  bw::bind_linear(module, library);
  bw::bind_memory(module);
  bw::bind_moments(library);
  bw::bind_nearest(library);
  bw::bind_sweep(module, library);
  bw::bind_product(module, library);
  bw::bind_vectors(module, library);
  bw::bind_decode(module);
  bw::bind_probe(library);
  bw::bind_trellis(module, library);
}
