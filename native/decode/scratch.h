// Memory of a step that only grows.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace bw {

template <class T>
class Buffer64 {
 public:
  Buffer64() = default;
  Buffer64(const Buffer64&) = delete;
  Buffer64& operator=(const Buffer64&) = delete;
  ~Buffer64() { std::free(data_); }

  // At least `count` values, aligned to 64 bytes; what was there is lost where it grows.
  T* get(int64_t count) {
    if (static_cast<size_t>(count) > count_) {
      std::free(data_);
      data_ = nullptr;
      count_ = 0;
      data_ = static_cast<T*>(std::aligned_alloc(64, (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64));
      if (!data_) throw std::bad_alloc();
      count_ = static_cast<size_t>(count);
    }
    return data_;
  }
  T* data() { return data_; }
  int64_t bytes() const { return static_cast<int64_t>(count_ * sizeof(T)); }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

}  // namespace bw
