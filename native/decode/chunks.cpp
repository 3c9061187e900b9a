#include "decode/chunks.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace bw {

void Chunks::Free::operator()(void* memory) const { std::free(memory); }

void Chunks::reach(int64_t from, int64_t to) {
  const auto count = static_cast<size_t>((to + kChunkTokens - 1) / kChunkTokens);
  if (count > made_.size()) {
    owned_.resize(count);
    made_.resize(count);
  }
  for (auto i = static_cast<size_t>(from / kChunkTokens); i < count; ++i) {
    if (made_[i]) continue;
    const size_t bytes = static_cast<size_t>((size_ + 63) / 64 * 64);
    owned_[i].reset(std::aligned_alloc(64, bytes));
    if (!owned_[i]) throw std::bad_alloc();
    made_[i] = owned_[i].get();
    // Places that no token has taken yet are read (and cut off), so they must be numbers.
    std::memset(made_[i], 0, bytes);
  }
}

void Chunks::keep(int64_t tokens) {
  const auto wanted = static_cast<size_t>((tokens + kChunkTokens - 1) / kChunkTokens);
  if (wanted < made_.size()) {
    made_.resize(wanted);
    owned_.resize(wanted);
  }
}

void Chunks::release(int64_t tokens) {
  for (size_t i = 0; i < made_.size() && static_cast<int64_t>(i + 1) * kChunkTokens <= tokens; ++i) {
    owned_[i].reset();
    made_[i] = nullptr;
  }
}

int64_t Chunks::bytes() const {
  int64_t total = 0;
  for (const void* chunk : made_) total += chunk ? size_ : 0;
  return total;
}

}  // namespace bw
