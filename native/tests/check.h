// What the parts of the driver share: random numbers, failed checks, memory whose every byte is accounted for.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>

#include "core/table.h"

namespace bw::test {

// Ends the program with a sentence: a driver has no use for a second failure.
[[noreturn]] inline void fail(const std::string& sentence) {
  std::fprintf(stderr, "failed: %s\n", sentence.c_str());
  std::exit(1);
}
inline void check(bool condition, const std::string& sentence) {
  if (!condition) fail(sentence);
}
inline void check(bool condition, const char* sentence) {
  if (!condition) fail(sentence);
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  // A whole number from low to high, both included.
  int64_t number(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }
  float normal() { return std::normal_distribution<float>()(engine_); }
  float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(engine_); }
  bool coin() { return number(0, 1) == 1; }
  template <class T, size_t n>
  T one_of(const T (&values)[n]) {
    return values[number(0, static_cast<int64_t>(n) - 1)];
  }

 private:
  std::mt19937_64 engine_;
};

// Exactly `count` values on the heap, so that AddressSanitizer sees a byte too many in either direction.
template <class T>
class Exact {
 public:
  explicit Exact(int64_t count) : data_(new T[static_cast<size_t>(count)]()), count_(count) {}
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return count_; }
  T& operator[](int64_t i) { return data_[static_cast<size_t>(i)]; }
  const T& operator[](int64_t i) const { return data_[static_cast<size_t>(i)]; }

 private:
  std::unique_ptr<T[]> data_;
  int64_t count_;
};

template <class T>
Exact<T> copy_of(const Exact<T>& from) {
  Exact<T> made(from.size());
  for (int64_t i = 0; i < made.size(); ++i) made[i] = from[i];
  return made;
}

void test_linear(const Kernels& kernels, Random& random, int turns);
void test_bits(const Kernels& kernels, Random& random, int turns);
void test_coded(const Kernels& kernels, Random& random, int turns);
void test_ways(const Kernels& kernels, Random& random, int turns);
void test_counts(const Kernels& kernels, Random& random, int turns);
void test_terms(const Kernels& kernels, Random& random, int turns);
void test_hadamard(const Kernels& kernels, Random& random, int turns);
void test_sweep(const Kernels& kernels, Random& random, int turns);
void test_descent(const Kernels& kernels, Random& random, int turns);
void test_kmeans(const Kernels& kernels, Random& random, int turns);
void test_rows(const Kernels& kernels, Random& random, int turns);
void test_attention(const Kernels& kernels, Random& random, int turns);
void test_decode(const Kernels& kernels, Random& random, int turns);
void test_vectors(const Kernels& kernels, Random& random, int turns);
void test_probe(const Kernels& kernels, Random& random, int turns);
void test_trellis(const Kernels& kernels, Random& random, int turns);
void test_nearest(const Kernels& kernels, Random& random, int turns);
void test_symmetric(const Kernels& kernels, Random& random, int turns);
void test_pool(Random& random, int turns);
void test_memory();

}  // namespace bw::test
