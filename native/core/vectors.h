// Codes of vectors: what their searches and products read.
#pragma once

#include <cstdint>

namespace bw {

constexpr int kSpan = 8;  // weights of a lattice point

// Additive codebooks to search, transposed: columns of entries, padded to whole vectors of 16 entries.
struct Books {
  int64_t books = 0;
  int64_t entries = 0;  // of each codebook
  int64_t padded = 0;   // entries, rounded up to 64
  int64_t span = 0;
  const float* columns = nullptr;  // [books][span][padded]
  const float* half = nullptr;     // [books][padded]: half the squared lengths, infinite for padding
  const float* rows = nullptr;     // [books][entries][span]
  int64_t beam = 1;
};

// The base points of E8P.
struct BasePoints {
  const float* sizes = nullptr;    // [8][256] absolute values
  const float* half = nullptr;     // [256]
  const float* penalty = nullptr;  // [2][256]: 2 where signs with this parity of minus signs need another change
  const uint8_t* odd = nullptr;    // [256]: whether the last coordinate is negative
};

// Matrices of E8P in the layout of a Weight (core/weight.h): 32 inputs are planes of 64 bytes, byte s of lane r for
// span s of row r: patterns, then signs and shift; then for 4 bits the same of the second point, for 3 bits its index.
// Activations are exchanged within every 32: place 4 j + s holds input 8 s + j.
struct LatticeTables {
  // [2][256]: of every pattern the fields of two bits (|value| - 1/2) of coordinates 0..3 and 4..7; with 3 bits
  // followed by [4][256]: numbers of the values of two coordinates of the second codebook, four bits each.
  const uint8_t* patterns = nullptr;
  // [16] bytes of the first point (bits 0, 1: field, 2: sign, 3: shift), [16] of the second, both with their offset.
  const uint8_t* values = nullptr;
};

// Sums of entries of fp16 codebooks of 8 weights, a byte or two for every index, rows one after the other.
struct AdditiveWeight {
  int64_t out = 0;
  int64_t in = 0;
  int64_t books = 1;
  int64_t index_bytes = 1;
  int64_t group = 0;                  // inputs of a scale: a multiple of 16, or all
  const uint8_t* codes = nullptr;     // [out][in / 8][books] indices, little-endian
  const uint16_t* entries = nullptr;  // [books][256 or 65536][8]
  const float* scale = nullptr;       // [out][groups]

  int64_t groups() const { return (in + group - 1) / group; }
  int64_t row_bytes() const { return in / kSpan * books * index_bytes; }
  int64_t padded() const { return (in + 15) / 16 * 16; }
};

// What a product with vectors reads beside (points of a lattice) or instead of (sums of entries) a Weight.
struct VectorTables {
  int bits = 0;  // of a lattice
  LatticeTables lattice;
  AdditiveWeight additive;  // without outputs where there is none
};

// Exchanges the places of every 32 of `count` values (a multiple of 32) as lattice products read them.
template <class T>
void exchange_spans(T* values, int64_t count) {
  for (int64_t start = 0; start < count; start += 32) {
    T kept[32];
    for (int i = 0; i < 32; ++i) kept[i] = values[start + i];
    for (int s = 0; s < 4; ++s)
      for (int j = 0; j < kSpan; ++j) values[start + 4 * j + s] = kept[8 * s + j];
  }
}

}  // namespace bw
