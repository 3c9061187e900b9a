// Memory of a growing sequence in chunks of 256 tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/attention.h"

namespace bw {

// Chunks are made when they are needed; those that nobody reads any more may be given back.
class Chunks {
 public:
  explicit Chunks(int64_t bytes) : size_(bytes) {}
  // Makes the chunks that hold the places [from, to).
  void reach(int64_t from, int64_t to);
  // Gives the chunks back that hold nothing below `tokens`.
  void keep(int64_t tokens);
  // Gives the chunks back that hold nothing at `tokens` or behind it.
  void release(int64_t tokens);
  void* at(int64_t position) const { return made_[static_cast<size_t>(position / kChunkTokens)]; }
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

}  // namespace bw
