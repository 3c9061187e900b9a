// Keys and values of one layer, growing token by token.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/attention.h"

namespace bw {

// Chunks of 256 tokens that are made when they are needed.
class Chunks {
 public:
  explicit Chunks(int64_t bytes) : size_(bytes) {}
  // Makes the chunks that hold the places below `tokens`.
  void reach(int64_t tokens);
  // Gives the chunks back that hold nothing below `tokens`.
  void keep(int64_t tokens);
  void* at(int64_t position) { return made_[static_cast<size_t>(position / kChunkTokens)]; }
  const void* const* all() const { return made_.data(); }
  int64_t bytes() const;

 private:
  struct Free {
    void operator()(void* memory) const;
  };
  int64_t size_;
  std::vector<std::unique_ptr<void, Free>> owned_;
  std::vector<void*> made_;
};

// Floats of some type for all tokens of a layer.
class LayerCache {
 public:
  LayerCache(int64_t heads, int64_t dim, Float type);
  // Stores the tokens at [position, position + count): keys and values are [count][heads * dim], with strides.
  void store(int64_t position, int64_t count, const float* keys, int64_t key_stride, const float* values,
             int64_t value_stride);
  void reach(int64_t tokens);
  void crop(int64_t tokens);
  int64_t bytes() const { return keys_.bytes() + values_.bytes(); }
  Store keys() const { return {type_, padded_, keys_.all()}; }
  Store values() const { return {type_, padded_, values_.all()}; }

 private:
  template <class T, class Convert>
  void store_as(int64_t position, const float* key, const float* value, Convert convert);

  int64_t heads_, dim_, padded_;
  Float type_;
  Chunks keys_, values_;
};

}  // namespace bw
