// The Python class Library: the kernels of one instruction set. Each file of bindings/ adds its methods.
#pragma once

#include <nanobind/nanobind.h>

#include "core/table.h"

namespace bw {

struct Library {
  const Kernels* kernels;
};

using LibraryClass = nanobind::class_<Library>;

void bind_bits(LibraryClass& library);
void bind_factor(LibraryClass& library);
void bind_hadamard(LibraryClass& library);
void bind_kmeans(LibraryClass& library);
void bind_linear(nanobind::module_& module, LibraryClass& library);
void bind_memory(nanobind::module_& module);
void bind_moments(LibraryClass& library);
void bind_nearest(LibraryClass& library);
void bind_sweep(nanobind::module_& module, LibraryClass& library);
void bind_product(nanobind::module_& module, LibraryClass& library);
void bind_vectors(nanobind::module_& module, LibraryClass& library);
void bind_decode(nanobind::module_& module);
void bind_probe(LibraryClass& library);
void bind_trellis(nanobind::module_& module, LibraryClass& library);

}  // namespace bw
