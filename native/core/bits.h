// Dense streams of codes of 1 to 8 bits, the first code in the lowest bits (little-endian).
#pragma once

#include <cstdint>

namespace bw {

// `rows` streams of `codes` codes each; a stream starts at a byte and its last byte is padded with zero bits.
struct BitStreams {
  int64_t rows = 0;
  int64_t codes = 0;
  int bits = 0;

  int64_t row_bytes() const { return (codes * bits + 7) / 8; }
};

}  // namespace bw
