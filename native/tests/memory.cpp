#include "core/memory.h"

#include "tests/check.h"

namespace bw::test {

void test_memory() {
  constexpr size_t kPage = size_t{1} << 21;
  for (size_t bytes : {size_t{1}, kPage - 1, kPage, kPage + 1, 3 * kPage}) {
    auto* memory = static_cast<uint8_t*>(take_pages(bytes));
    check(reinterpret_cast<uintptr_t>(memory) % kPage == 0, "pages are aligned");
    check(memory[0] == 0 && memory[bytes - 1] == 0, "pages are zero");
    memory[0] = memory[bytes - 1] = 1;
    return_pages(memory, bytes);
  }
  bool refused = false;
  try {
    take_pages(size_t{1} << 62);
  } catch (const std::bad_alloc&) {
    refused = true;
  }
  check(refused, "memory that is not there is refused");
}

}  // namespace bw::test
