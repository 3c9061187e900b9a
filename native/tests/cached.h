// Keys and values of random tokens in the forms of a cache, in memory without a byte to spare, beside what they mean.
#pragma once

#include <vector>

#include "decode/coded.h"
#include "tests/weights.h"

namespace bw::test {

inline StateCoding random_state_coding(Random& random, int64_t dim) {
  StateCoding coding;
  coding.bits = static_cast<int>(random.number(1, 8));
  coding.across = random.coin();
  coding.group = coding.across   ? random.one_of<int64_t>({16, 32, 64, 256})
                 : random.coin() ? dim + random.number(0, 5)
                                 : random.one_of<int64_t>({16, 32});
  coding.with_zero = random.coin();
  coding.is_signed = !coding.with_zero && coding.bits > 1;
  coding.narrow = coding.is_signed && coding.bits > 1 && random.coin();
  coding.zero_is_code = random.coin();
  coding.zero_type = static_cast<Float>(random.number(0, 2));
  coding.scale_type = static_cast<Float>(random.number(0, 2));
  coding.clip = random.one_of({1.0f, 0.9f});
  return coding;
}

// What coded tokens mean, read as core/attention.h describes them.
inline float meaning(const CodedStore& store, bool keys, int64_t head, int64_t token, int64_t channel) {
  const int64_t chunk = token / kChunkTokens, place = token % kChunkTokens, fields = 8 / store.bits;
  const int64_t block = head * (kChunkTokens / kBlockTokens) + place / kBlockTokens, lane = place % kBlockTokens;
  const auto* codes = static_cast<const uint8_t*>(store.codes[chunk]);
  int64_t at, field;
  if (keys) {
    at = (block * (store.padded / fields) + channel / fields) * kBlockTokens + lane, field = channel % fields;
  } else {
    const int64_t unit = kBlockTokens * fields;
    at = (head * kChunkTokens + place) * (store.padded / fields) + channel / unit * kBlockTokens +
         channel % kBlockTokens;
    field = channel % unit / kBlockTokens;
  }
  const int code = codes[at] >> field * store.bits & ((1 << store.bits) - 1);
  int64_t scale;
  if (store.across) {
    scale = (head * (kChunkTokens / store.group) + place / store.group) * store.padded + channel;
  } else {
    const int64_t group = std::min(store.groups - 1, channel / store.group);
    scale = keys ? (block * store.groups + group) * kBlockTokens + lane
                 : (head * kChunkTokens + place) * store.groups + group;
  }
  const float zero = store.has_zeros ? store.zeros[chunk][scale] : store.constant_zero;
  return store.scales[chunk][scale] * (static_cast<float>(code) - zero);
}

// One side (keys or values) of some tokens: floats of a type, or codes.
struct Side {
  int64_t heads, dim, tokens;
  bool keys;
  Float type;
  int64_t padded;
  std::vector<Exact<float>> wide;
  std::vector<Exact<uint16_t>> halves;
  std::vector<const void*> chunks;
  std::unique_ptr<CodedSide> coded;
  Exact<float> meant;  // [tokens][heads][dim]
  Store store;
  CodedStore coded_store;

  int64_t place(int64_t head, int64_t token, int64_t channel) const {
    const int64_t in_chunk = token % kChunkTokens;
    if (!keys) return (head * kChunkTokens + in_chunk) * padded + channel;
    const int64_t block = head * (kChunkTokens / kBlockTokens) + in_chunk / kBlockTokens;
    return (block * padded + channel) * kBlockTokens + in_chunk % kBlockTokens;
  }

  Side(Random& random, int64_t heads, int64_t dim, int64_t tokens, bool keys)
      : heads(heads),
        dim(dim),
        tokens(tokens),
        keys(keys),
        type(static_cast<Float>(random.number(0, 2))),
        padded((dim + 15) / 16 * 16),
        meant(tokens * heads * dim) {
    fill_normal(random, meant);
    random.coin() ? fill_floats() : fill_codes(random);
  }

  void fill_floats() {
    const int64_t size = heads * kChunkTokens * padded;
    for (int64_t chunk = 0; chunk * kChunkTokens < tokens; ++chunk) {
      wide.emplace_back(type == Float::f32 ? size : 0);
      halves.emplace_back(type == Float::f32 ? 0 : size);
      chunks.push_back(type == Float::f32 ? static_cast<const void*>(wide.back().data()) : halves.back().data());
    }
    for (int64_t i = 0; i < meant.size(); ++i) {
      const int64_t token = i / dim / heads, at = place(i / dim % heads, token, i % dim);
      const auto chunk = static_cast<size_t>(token / kChunkTokens);
      if (type == Float::f32) {
        wide[chunk][at] = meant[i];
      } else {
        const uint16_t half = halves[chunk][at] = type == Float::f16 ? to_f16(meant[i]) : to_bf16(meant[i]);
        meant[i] = type == Float::f16 ? from_f16(half) : from_bf16(half);
      }
    }
    store = {type, padded, chunks.data()};
  }

  // Tokens that do not fill a group are left out of what can be attended to.
  void fill_codes(Random& random) {
    const StateCoding coding = random_state_coding(random, dim);
    coded = std::make_unique<CodedSide>(coding, heads, dim, keys);
    const int64_t together = coding.together(), width = heads * dim;
    tokens = tokens / together * together;
    for (int64_t first = 0; first < tokens; first += together) {
      std::vector<const float*> rows;
      for (int64_t t = 0; t < together; ++t) rows.push_back(meant.data() + (first + t) * width);
      coded->append(rows.data());
    }
    coded_store = coded->store();
    for (int64_t i = 0; i < tokens * width; ++i) {
      const float got = meaning(coded_store, keys, i / dim % heads, i / width, i % dim);
      // Half a step of at most the whole range, and what the range's clipped share and 1 bit leave out.
      check(std::isfinite(got) && std::fabs(got) < 20, "a coded state is a number of its range");
      const bool whole = coding.bits == 8 && coding.clip == 1 && (coding.is_signed || coding.with_zero);
      if (whole) check(std::fabs(got - meant[i]) < 0.2f, "8 bits are near the value");
      meant[i] = got;
    }
  }
};

}  // namespace bw::test
