// Keys and values of one layer, growing token by token: floats, and what of them is coded.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "decode/chunks.h"
#include "decode/coded.h"
#include "decode/scratch.h"

namespace bw {

// How a cache holds its tokens: floats of a type, or codes of all but the last `window` tokens.
struct CacheForm {
  Float type = Float::f32;
  StateCoding keys, values;
  int64_t window = 0;

  // Whether every token is coded by itself at once, so that pieces of a prompt and ways back are exact.
  bool plain() const {
    return (!keys.bits || (keys.together() == 1 && window == 0)) &&
           (!values.bits || (values.together() == 1 && window == 0));
  }
};

class LayerCache {
 public:
  LayerCache(int64_t heads, int64_t dim, const CacheForm& form);
  // Makes room for the tokens [from, to).
  void reach(int64_t from, int64_t to);
  // Stores one token: keys and values are [heads * dim].
  void store(int64_t position, const float* keys, const float* values);
  // Codes what is due of the first `tokens` tokens.
  void code(int64_t tokens);
  void crop(int64_t tokens);
  int64_t bytes() const;
  Store keys() const { return {form_.type, padded_, keys_.all()}; }
  Store values() const { return {form_.type, padded_, values_.all()}; }
  // Null where this side is never coded.
  const CodedSide* coded_keys() const { return coded_keys_.get(); }
  const CodedSide* coded_values() const { return coded_values_.get(); }

 private:
  template <class T, class Convert>
  void store_as(int64_t position, const float* key, const float* value, Convert convert);
  void code_side(CodedSide& side, bool keys, int64_t tokens);
  // One token's floats, as they were stored (fp32).
  void row(bool keys, int64_t position, float* to) const;

  int64_t heads_, dim_, padded_;
  CacheForm form_;
  Chunks keys_, values_;
  std::unique_ptr<CodedSide> coded_keys_, coded_values_;
  Buffer64<float> rows_;
};

}  // namespace bw
