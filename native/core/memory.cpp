#include "core/memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bw {
namespace {

constexpr size_t kPage = size_t{1} << 21;

size_t rounded(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

}  // namespace

bool prefetches_help() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool intel = [] {
    __builtin_cpu_init();
    return __builtin_cpu_is("intel") != 0;
  }();
  return intel;
#else
  return false;
#endif
}

#if defined(__linux__)
void* take_pages(size_t bytes) {
  const size_t size = rounded(bytes);
  // One page more than needed, whose unaligned ends are given back.
  char* start =
      static_cast<char*>(mmap(nullptr, size + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (start == MAP_FAILED) throw std::bad_alloc();
  const size_t before = (kPage - reinterpret_cast<uintptr_t>(start) % kPage) % kPage;
  if (before) munmap(start, before);
  char* aligned = start + before;
  if (before != kPage) munmap(aligned + size, kPage - before);
  madvise(aligned, size, MADV_HUGEPAGE);  // advice: where it is refused, small pages serve
  return aligned;
}

void return_pages(void* memory, size_t bytes) { munmap(memory, rounded(bytes)); }
#else
void* take_pages(size_t bytes) {
  void* memory = std::aligned_alloc(kPage, rounded(bytes));
  if (!memory) throw std::bad_alloc();
  std::memset(memory, 0, rounded(bytes));
  return memory;
}

void return_pages(void* memory, size_t) { std::free(memory); }
#endif

}  // namespace bw
