// Scratch memory of one call, of as many pieces as it asks for, freed at its end. Prompts need megabytes, which the
// allocator keeps for the next call.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "bindings/checks.h"

namespace bw {

class Workspace {
 public:
  template <class T>
  T* take(int64_t count) {
    const size_t bytes = (static_cast<size_t>(product(count, sizeof(T))) + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, bytes ? bytes : 64);
    if (!memory) throw std::bad_alloc();
    kept_.emplace_back(memory);
    return static_cast<T*>(memory);
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::vector<std::unique_ptr<void, Free>> kept_;
};

}  // namespace bw
