#include "decode/coded.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/half.h"

namespace bw {
namespace {

constexpr float kSmallest = std::numeric_limits<float>::min();

float rounded(float value, Float type) {
  switch (type) {
    case Float::f16: return from_f16(to_f16(value));
    case Float::bf16: return from_bf16(to_bf16(value));
    default: return value;
  }
}

float stored_scale(float scale, Float type) {
  // Scales below fp16's normal range are rounded up: rounded down they would clip the largest values.
  if (type == Float::f16 && scale < 0x1p-14f) scale = std::ceil(scale * 0x1p24f) * 0x1p-24f;
  return rounded(std::max(scale, kSmallest), type);
}

}  // namespace

Step step_of(const StateCoding& coding, float low, float high) {
  low *= coding.clip;
  high *= coding.clip;
  if (coding.with_zero) {
    const float steps = static_cast<float>(coding.high());
    low = std::min(low, 0.0f);
    high = std::max(high, 0.0f);
    const float scale = high - low > 0 ? std::max((high - low) / steps, kSmallest) : 1.0f;
    float zero = -low / scale;
    if (coding.zero_is_code) zero = std::clamp(std::nearbyint(zero), 0.0f, steps);
    return {stored_scale(scale, coding.scale_type), rounded(zero, coding.zero_is_code ? Float::f32 : coding.zero_type)};
  }
  const float most = std::max(std::fabs(low), std::fabs(high));
  float raw;
  if (!coding.is_signed) {
    raw = high / static_cast<float>(coding.high());
  } else if (coding.narrow) {
    raw = most / static_cast<float>(coding.high());
  } else {
    raw = most / (coding.bits > 1 ? static_cast<float>((1 << coding.bits) - 1) / 2 : 1.0f);
  }
  return {stored_scale(most > 0 ? std::max(raw, kSmallest) : 1.0f, coding.scale_type), 0};
}

int code_of(const StateCoding& coding, Step step, float value) {
  float scaled = value / step.scale;
  if (coding.with_zero) scaled += step.zero;
  const float level =
      std::clamp(std::nearbyint(scaled), static_cast<float>(coding.low()), static_cast<float>(coding.high()));
  // A NaN has no level; it must not become an index.
  return level == level ? static_cast<int>(level) - coding.low() : 0;
}

namespace {

int64_t padded_of(const StateCoding& coding, int64_t dim) {
  const int64_t unit = 16 * (8 / coding.width());
  return (dim + unit - 1) / unit * unit;
}

}  // namespace

CodedSide::CodedSide(const StateCoding& coding, int64_t heads, int64_t dim, bool keys)
    : coding_(coding),
      heads_(heads),
      dim_(dim),
      padded_(padded_of(coding, dim)),
      groups_(coding.across ? 1 : (dim + coding.group - 1) / coding.group),
      keys_(keys),
      codes_(heads * kChunkTokens * padded_ * coding.width() / 8),
      scales_(4 * heads * (coding.across ? kChunkTokens / coding.group * padded_ : kChunkTokens * groups_)),
      zeros_(coding.with_zero
                 ? 4 * heads * (coding.across ? kChunkTokens / coding.group * padded_ : kChunkTokens * groups_)
                 : 0) {}

CodedStore CodedSide::store() const {
  CodedStore found;
  found.bits = coding_.width();
  found.across = coding_.across;
  // One group: also what pads the channels belongs to it.
  found.group = coding_.across || groups_ > 1 ? coding_.group : padded_;
  found.groups = groups_;
  found.padded = padded_;
  found.constant_zero = static_cast<float>(-coding_.low());
  found.has_zeros = coding_.with_zero;
  found.codes = codes_.all();
  found.scales = reinterpret_cast<const float* const*>(scales_.all());
  found.zeros = reinterpret_cast<const float* const*>(zeros_.all());
  return found;
}

void CodedSide::put(int64_t head, int64_t position, int64_t channel, int code) {
  const int64_t fields = 8 / coding_.width(), place = position % kChunkTokens;
  auto* codes = static_cast<uint8_t*>(codes_.at(position));
  int64_t at, field;
  if (keys_) {
    const int64_t block = head * (kChunkTokens / kBlockTokens) + place / kBlockTokens;
    at = (block * (padded_ / fields) + channel / fields) * kBlockTokens + place % kBlockTokens;
    field = channel % fields;
  } else {
    const int64_t vector = channel / (16 * fields);
    at = (head * kChunkTokens + place) * (padded_ / fields) + vector * 16 + channel % 16;
    field = channel % (16 * fields) / 16;
  }
  const int shift = static_cast<int>(field) * coding_.width();
  const int mask = ((1 << coding_.width()) - 1) << shift;
  codes[at] = static_cast<uint8_t>((codes[at] & ~mask) | code << shift);
}

void CodedSide::append(const float* const* rows) {
  const int64_t reached = tokens_ + coding_.together();
  codes_.reach(tokens_, reached);
  scales_.reach(tokens_, reached);
  if (coding_.with_zero) zeros_.reach(tokens_, reached);
  coding_.across ? group(rows) : token(rows[0]);
  tokens_ = reached;
}

void CodedSide::token(const float* row) {
  const int64_t place = tokens_ % kChunkTokens;
  auto* scales = static_cast<float*>(scales_.at(tokens_));
  for (int64_t head = 0; head < heads_; ++head, row += dim_) {
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t first = g * coding_.group, last = std::min(dim_, first + coding_.group);
      const auto range = std::minmax_element(row + first, row + last);
      const Step step = step_of(coding_, *range.first, *range.second);
      const int64_t block = head * (kChunkTokens / kBlockTokens) + place / kBlockTokens;
      const int64_t at = keys_ ? (block * groups_ + g) * kBlockTokens + place % kBlockTokens
                               : (head * kChunkTokens + place) * groups_ + g;
      scales[at] = step.scale;
      if (coding_.with_zero)
        static_cast<float*>(zeros_.at(tokens_))[at] = step.zero - static_cast<float>(coding_.low());
      for (int64_t d = first; d < last; ++d) put(head, tokens_, d, code_of(coding_, step, row[d]));
    }
  }
}

void CodedSide::group(const float* const* rows) {
  auto* scales = static_cast<float*>(scales_.at(tokens_));
  for (int64_t head = 0; head < heads_; ++head) {
    const int64_t start = (head * (kChunkTokens / coding_.group) + tokens_ % kChunkTokens / coding_.group) * padded_;
    for (int64_t d = 0; d < dim_; ++d) {
      const int64_t channel = head * dim_ + d;
      float low = rows[0][channel], high = low;
      for (int64_t t = 1; t < coding_.group; ++t) {
        low = std::min(low, rows[t][channel]);
        high = std::max(high, rows[t][channel]);
      }
      const Step step = step_of(coding_, low, high);
      scales[start + d] = step.scale;
      if (coding_.with_zero)
        static_cast<float*>(zeros_.at(tokens_))[start + d] = step.zero - static_cast<float>(coding_.low());
      for (int64_t t = 0; t < coding_.group; ++t) put(head, tokens_ + t, d, code_of(coding_, step, rows[t][channel]));
    }
  }
}

void CodedSide::crop(int64_t tokens) {
  tokens_ = std::min(tokens_, tokens);
  codes_.keep(tokens_);
  scales_.keep(tokens_);
  if (coding_.with_zero) zeros_.keep(tokens_);
}

}  // namespace bw
