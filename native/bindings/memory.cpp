#include "core/memory.h"

#include <nanobind/ndarray.h>

#include "bindings/checks.h"
#include "bindings/library.h"

namespace nb = nanobind;

namespace bw {
namespace {

struct Pages {
  explicit Pages(int64_t size) : bytes(static_cast<size_t>(size)) {
    require(size > 0, "memory of no bytes was asked for");
    memory = take_pages(bytes);
  }
  Pages(const Pages&) = delete;
  ~Pages() { return_pages(memory, bytes); }
  size_t bytes;
  void* memory;
};

using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::device::cpu>;

// The array keeps the pages alive.
Bytes pages(int64_t bytes) {
  Pages* made = new Pages(bytes);
  nb::capsule owner(made, [](void* p) noexcept { delete static_cast<Pages*>(p); });
  return Bytes(made->memory, {made->bytes}, owner);
}

}  // namespace

void bind_memory(nb::module_& module) {
  module.def("pages", pages, nb::arg("bytes"), "Zeroed bytes on large pages, as an array.");
}

}  // namespace bw
