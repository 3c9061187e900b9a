#include "decode/cache.h"

#include <algorithm>

#include "core/half.h"

namespace bw {
namespace {

int64_t padded(int64_t dim) { return (dim + 15) / 16 * 16; }
int64_t chunk_bytes(int64_t heads, int64_t dim, Float type) {
  return heads * kChunkTokens * padded(dim) * (type == Float::f32 ? 4 : 2);
}

}  // namespace

LayerCache::LayerCache(int64_t heads, int64_t dim, const CacheForm& form)
    : heads_(heads),
      dim_(dim),
      padded_(padded(dim)),
      form_(form),
      keys_(chunk_bytes(heads, dim, form.type)),
      values_(chunk_bytes(heads, dim, form.type)) {
  if (form.keys.bits) coded_keys_ = std::make_unique<CodedSide>(form.keys, heads, dim, true);
  if (form.values.bits) coded_values_ = std::make_unique<CodedSide>(form.values, heads, dim, false);
}

void LayerCache::reach(int64_t from, int64_t to) {
  keys_.reach(from, to);
  values_.reach(from, to);
}

void LayerCache::crop(int64_t tokens) {
  keys_.keep(tokens);
  values_.keep(tokens);
  if (coded_keys_) coded_keys_->crop(tokens);
  if (coded_values_) coded_values_->crop(tokens);
}

int64_t LayerCache::bytes() const {
  return keys_.bytes() + values_.bytes() + (coded_keys_ ? coded_keys_->bytes() : 0) +
         (coded_values_ ? coded_values_->bytes() : 0);
}

void LayerCache::code(int64_t tokens) {
  if (coded_keys_) code_side(*coded_keys_, true, tokens);
  if (coded_values_) code_side(*coded_values_, false, tokens);
}

void LayerCache::code_side(CodedSide& side, bool keys, int64_t tokens) {
  const int64_t together = side.coding().together(), width = heads_ * dim_;
  const int64_t due = std::max<int64_t>(tokens - form_.window, 0) / together * together;
  if (side.tokens() >= due) return;
  float* rows = rows_.get(together * width);
  const float* places[kChunkTokens];
  while (side.tokens() < due) {
    for (int64_t t = 0; t < together; ++t) {
      row(keys, side.tokens() + t, rows + t * width);
      places[t] = rows + t * width;
    }
    side.append(places);
  }
  (keys ? keys_ : values_).release(side.tokens());
}

void LayerCache::row(bool keys, int64_t position, float* to) const {
  const int64_t place = position % kChunkTokens, block = place / kBlockTokens, lane = place % kBlockTokens;
  const auto* from = static_cast<const float*>((keys ? keys_ : values_).at(position));
  for (int64_t head = 0; head < heads_; ++head, to += dim_) {
    if (keys) {
      const float* first = from + (head * (kChunkTokens / kBlockTokens) + block) * padded_ * kBlockTokens + lane;
      for (int64_t d = 0; d < dim_; ++d) to[d] = first[d * kBlockTokens];
    } else {
      const float* first = from + (head * kChunkTokens + place) * padded_;
      std::copy(first, first + dim_, to);
    }
  }
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

void LayerCache::store(int64_t position, const float* keys, const float* values) {
  switch (form_.type) {
    case Float::f32: return store_as<float>(position, keys, values, [](float x) { return x; });
    case Float::f16: return store_as<uint16_t>(position, keys, values, to_f16);
    case Float::bf16: return store_as<uint16_t>(position, keys, values, to_bf16);
  }
}

}  // namespace bw
