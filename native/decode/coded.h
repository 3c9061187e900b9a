// Keys or values in few bits: how they are coded, and where.
#pragma once

#include <cstdint>
#include <vector>

#include "core/attention.h"
#include "decode/chunks.h"

namespace bw {

// Integers of `bits` under scales of ranges. A scale serves `group` neighbouring channels of a token, or (`across`)
// one channel of `group` neighbouring tokens.
struct StateCoding {
  int bits = 0;  // 0: floats
  bool across = false;
  int64_t group = 0;
  bool is_signed = true;
  bool narrow = false;
  bool with_zero = false;  // zero points; the grid is unsigned
  bool zero_is_code = true;
  Float zero_type = Float::f32;
  Float scale_type = Float::f32;
  float clip = 1;

  int low() const { return is_signed ? -(1 << (bits - 1)) + (narrow ? 1 : 0) : 0; }
  int high() const { return (is_signed ? 1 << (bits - 1) : 1 << bits) - 1; }
  int width() const { return bits <= 2 ? 2 : bits <= 4 ? 4 : 8; }  // bits of a code in memory
  int64_t together() const { return across ? group : 1; }          // tokens that are coded together
};

// Scale and zero point of a range, rounded as they are stored.
struct Step {
  float scale, zero;
};
Step step_of(const StateCoding& coding, float low, float high);
// The nearest level of a value, counted from the lowest.
int code_of(const StateCoding& coding, Step step, float value);

// The coded tokens of one layer, keys or values.
class CodedSide {
 public:
  CodedSide(const StateCoding& coding, int64_t heads, int64_t dim, bool keys);
  const StateCoding& coding() const { return coding_; }
  int64_t tokens() const { return tokens_; }
  // Codes the next token, or the next group of tokens; rows[i] is token i's [heads * dim].
  void append(const float* const* rows);
  void crop(int64_t tokens);
  int64_t bytes() const { return codes_.bytes() + scales_.bytes() + zeros_.bytes(); }
  CodedStore store() const;

 private:
  void token(const float* row);
  void group(const float* const* rows);
  void put(int64_t head, int64_t position, int64_t channel, int code);

  StateCoding coding_;
  int64_t heads_, dim_, padded_, groups_;
  bool keys_;
  int64_t tokens_ = 0;
  Chunks codes_, scales_, zeros_;
};

}  // namespace bw
