// Keys and values of past tokens, and one piece of attention over them.
//
// Tokens lie in chunks of 256, chunks are found by position. Keys of 16 neighbouring tokens lie side by side, a vector
// for every channel, so that scores need no sums across lanes; values lie token after token.
//   keys    [heads][256 / 16][channels][16]
//   values  [heads][256][channels]
#pragma once

#include <cstdint>

#include "core/weight.h"

namespace bw {

constexpr int64_t kBlockTokens = 16;
constexpr int64_t kChunkTokens = 256;
constexpr int kQueries = 8;  // query rows that one call of the kernel serves

// Keys or values of one layer in one form.
struct Store {
  Float type = Float::f32;
  int64_t padded = 0;  // channels of a head, rounded up to whole vectors
  const void* const* chunks = nullptr;
};

// Coded keys or values: codes of 2, 4 or 8 bits. `across`: a scale for every channel and `group` tokens; else a scale
// for every token and `group` channels. A code means scale * (code - zero).
//   codes   keys [heads][16][channels / fields][16], values [heads][256][channels / fields]
//   scales  across: [heads][256 / group][channels]; else keys [heads][16][groups][16], values [heads][256][groups]
struct CodedStore {
  int bits = 0;
  bool across = false;
  int64_t group = 0;
  int64_t groups = 0;  // of one token's channels
  int64_t padded = 0;
  float constant_zero = 0;
  bool has_zeros = false;
  const void* const* codes = nullptr;
  const float* const* scales = nullptr;
  const float* const* zeros = nullptr;
};

// Attention of up to kQueries rows with one head's keys and values at the places [start, stop).
struct Attend {
  const float* query = nullptr;  // [rows][stride], scaled; channels behind the head's are zero
  int64_t stride = 0;
  int rows = 0;
  int64_t head = 0;
  int64_t start = 0, stop = 0;
  const int64_t* first = nullptr;  // of every row: it sees the places [first, last)
  const int64_t* last = nullptr;
  float cap = 0;                // scores become cap * tanh(score / cap); 0: as they are
  const Store* keys = nullptr;  // one of the two forms
  const CodedStore* coded_keys = nullptr;
  const Store* values = nullptr;
  const CodedStore* coded_values = nullptr;
  // What was summed so far, and what comes out: largest score, sum of weights, weighted sum of values.
  float* peak = nullptr;   // [rows]
  float* total = nullptr;  // [rows]
  float* sums = nullptr;   // [rows][stride]
};

constexpr float kNothing = -1e30f;  // the largest score where there is none

}  // namespace bw
