// Memory that a kernel reuses from call to call.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

#include "simd/simd.h"

namespace bw::BW_ISA {

// Grows as asked and keeps its memory; contents do not survive. Templates of the standard library are not used in
// kernels: the linker would merge them with those of another instruction set.
template <class T>
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // Never null: not even of nothing may null be handed to memset().
  T* get(size_t count) {
    if (count > count_ || !data_) {
      std::free(data_);
      count_ = 0;
      const size_t bytes = (count * sizeof(T) + 64) / 64 * 64;
      data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
      if (!data_) throw std::bad_alloc();
      count_ = count;
    }
    return data_;
  }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

}  // namespace bw::BW_ISA
