// Checks of what Python hands over: every buffer comes as an address and the number of bytes behind it.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace bw {

inline void require(bool condition, const std::string& sentence) {
  if (!condition) throw std::invalid_argument(sentence);
}

// A buffer of Python's: an address, and the bytes that may be read or written there.
struct Buffer {
  uintptr_t address = 0;
  int64_t bytes = 0;

  // The pointer, if at least `needed` bytes are there and it is aligned for T.
  template <class T>
  T* as(int64_t needed, const char* name) const {
    require(needed >= 0 && bytes >= needed,
            std::string(name) + " holds " + std::to_string(bytes) + " bytes, needs " + std::to_string(needed));
    require(needed == 0 || (address && address % alignof(T) == 0), std::string(name) + " is not aligned");
    return reinterpret_cast<T*>(address);
  }
};

inline int checked_threads(int threads) {
  require(threads >= 1 && threads <= 256, "threads are 1 to 256");
  return threads;
}

// a * b, refused where it leaves 62 bits.
inline int64_t product(int64_t a, int64_t b) {
  require(a >= 0 && b >= 0 && (b == 0 || a <= (int64_t{1} << 62) / b), "sizes are negative or too large");
  return a * b;
}

}  // namespace bw
