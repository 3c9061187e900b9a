// Memory for weights: large pages where the system has them.
#pragma once

#include <cstddef>

namespace bw {

// Zeroed memory, aligned to 2 MiB, that asks for large pages (Linux: transparent huge pages). Reading weights through
// small pages costs a fifth to a quarter of one thread's bandwidth under virtual machines.
// Throws std::bad_alloc. Give it back with the same size.
void* take_pages(size_t bytes);
void return_pages(void* memory, size_t bytes);

}  // namespace bw
