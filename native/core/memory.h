// Memory for weights: large pages where the system has them.
#pragma once

#include <cstddef>

namespace bw {

// Zeroed memory, aligned to 2 MiB, that asks for large pages (Linux: transparent huge pages). Reading weights through
// small pages costs a fifth to a quarter of one thread's bandwidth under virtual machines.
// Throws std::bad_alloc. Give it back with the same size.
void* take_pages(size_t bytes);
void return_pages(void* memory, size_t bytes);

// Whether this processor reads a stream faster when a program asks for it ahead. Measured with four-bit products from
// memory: an Emerald Rapids thread gains a quarter, a Zen 4 thread loses a third.
bool prefetches_help();

}  // namespace bw
