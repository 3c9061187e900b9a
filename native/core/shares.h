// How equal pieces of work are cut into chunks that threads claim.
#pragma once

#include <cstdint>

namespace bw {

// Large chunks first, so that a thread reads one long stream, small ones at the end, so that all threads end together:
// each takes a share of what is left, `1 / (2 * threads)`, and at least `smallest` units (guided self-scheduling,
// Polychronopoulos and Kuck 1987).
class Shares {
 public:
  Shares(int64_t units, int64_t smallest, int threads);
  int64_t chunks() const { return chunks_; }
  int64_t first(int64_t chunk) const { return edges_[chunk]; }
  int64_t last(int64_t chunk) const { return edges_[chunk + 1]; }

 private:
  static constexpr int64_t kMost = 512;  // chunks
  int64_t edges_[kMost + 1];
  int64_t chunks_ = 0;
};

}  // namespace bw
