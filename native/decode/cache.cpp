#include "decode/cache.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "core/half.h"

namespace bw {

void Chunks::Free::operator()(void* memory) const { std::free(memory); }

void Chunks::reach(int64_t tokens) {
  while (static_cast<int64_t>(made_.size()) * kChunkTokens < tokens) {
    const size_t bytes = static_cast<size_t>((size_ + 63) / 64 * 64);
    std::unique_ptr<void, Free> memory(std::aligned_alloc(64, bytes));
    if (!memory) throw std::bad_alloc();
    // Places that no token has taken yet are read (and cut off), so they must be numbers.
    std::memset(memory.get(), 0, bytes);
    made_.reserve(made_.size() + 1);
    owned_.push_back(std::move(memory));
    made_.push_back(owned_.back().get());
  }
}

void Chunks::keep(int64_t tokens) {
  const auto wanted = static_cast<size_t>((tokens + kChunkTokens - 1) / kChunkTokens);
  if (wanted < made_.size()) {
    made_.resize(wanted);
    owned_.resize(wanted);
  }
}

int64_t Chunks::bytes() const { return static_cast<int64_t>(made_.size()) * size_; }

namespace {

int64_t padded(int64_t dim) { return (dim + 15) / 16 * 16; }
int64_t chunk_bytes(int64_t heads, int64_t dim, Float type) {
  return heads * kChunkTokens * padded(dim) * (type == Float::f32 ? 4 : 2);
}

}  // namespace

LayerCache::LayerCache(int64_t heads, int64_t dim, Float type)
    : heads_(heads),
      dim_(dim),
      padded_(padded(dim)),
      type_(type),
      keys_(chunk_bytes(heads, dim, type)),
      values_(chunk_bytes(heads, dim, type)) {}

void LayerCache::reach(int64_t tokens) {
  keys_.reach(tokens);
  values_.reach(tokens);
}

void LayerCache::crop(int64_t tokens) {
  keys_.keep(tokens);
  values_.keep(tokens);
}

template <class T, class Convert>
void LayerCache::store_as(int64_t position, const float* key, const float* value, Convert convert) {
  T* keys = static_cast<T*>(keys_.at(position));
  T* values = static_cast<T*>(values_.at(position));
  const int64_t place = position % kChunkTokens, block = place / kBlockTokens, lane = place % kBlockTokens;
  for (int64_t head = 0; head < heads_; ++head) {
    T* to = keys + (head * (kChunkTokens / kBlockTokens) + block) * padded_ * kBlockTokens + lane;
    for (int64_t d = 0; d < dim_; ++d) to[d * kBlockTokens] = convert(key[head * dim_ + d]);
    to = values + (head * kChunkTokens + place) * padded_;
    for (int64_t d = 0; d < dim_; ++d) to[d] = convert(value[head * dim_ + d]);
  }
}

void LayerCache::store(int64_t position, int64_t count, const float* keys, int64_t key_stride, const float* values,
                       int64_t value_stride) {
  for (int64_t t = 0; t < count; ++t, keys += key_stride, values += value_stride) {
    switch (type_) {
      case Float::f32: store_as<float>(position + t, keys, values, [](float x) { return x; }); break;
      case Float::f16: store_as<uint16_t>(position + t, keys, values, to_f16); break;
      case Float::bf16: store_as<uint16_t>(position + t, keys, values, to_bf16); break;
    }
  }
}

}  // namespace bw
