#include "decode/state.h"

#include <algorithm>
#include <cmath>

#include "core/pool.h"

namespace bw {
namespace {

constexpr int64_t kPiece = 256;  // tokens of a prompt that are read at once

const Matrix& matrix(const Network& network, int index) { return network.matrices[static_cast<size_t>(index)]; }
const Norm& norm_of(const Network& network, int index) { return network.norms[static_cast<size_t>(index)]; }

// Work on every one of `count` rows, on other threads where there are several.
template <class Body>
void each_row(int64_t count, int threads, Body&& body) {
  parallel_for(count > 1 ? threads : 1, count, [&](int64_t t, int) { body(t); });
}

}  // namespace

State::State(const Network& network, const Kernels& kernels, const CacheForm& form)
    : network_(network),
      kernels_(kernels),
      form_(form),
      products_(kernels),
      // Room for what pads the channels in any form.
      stride_((network.head_dim + 63) / 64 * 64) {
  for (size_t i = 0; i < network.layers.size(); ++i)
    caches_.push_back(std::make_unique<LayerCache>(network.kv_heads, network.head_dim, form));
}

int64_t State::bytes() const {
  int64_t total = products_.bytes() + stream_.bytes() + normed_.bytes() + made_.bytes() + query_.bytes() +
                  key_.bytes() + mixed_.bytes() + inner_.bytes() + added_.bytes() + sums_.bytes();
  for (const auto& cache : caches_) total += cache->bytes();
  return total;
}

void State::crop(int64_t tokens) {
  tokens_ = std::min(tokens_, tokens);
  for (auto& cache : caches_) cache->crop(tokens_);
}

void State::read(const int64_t* ids, int64_t count, float* logits, int threads) {
  const int64_t before = tokens_;
  // Where tokens are coded late, each sees what is float when the whole prompt is there.
  const int64_t most = form_.plain() ? kPiece : count;
  try {
    for (int64_t start = 0; start < count; start += most) {
      const int64_t here = std::min(most, count - start);
      piece(ids + start, here, threads);
      if (start + here == count) head(stream_.data() + (here - 1) * network_.hidden, logits, threads);
    }
  } catch (...) {
    // Coded groups cannot go back exactly.
    crop(form_.plain() ? before : 0);
    throw;
  }
}

void State::piece(const int64_t* ids, int64_t count, int threads) {
  const int64_t hidden = network_.hidden;
  float* stream = stream_.get(count * hidden);
  const Matrix& table = matrix(network_, network_.embedding);
  for (int64_t t = 0; t < count; ++t) {
    float* row = stream + t * hidden;
    products_.row(table, ids[t], row);
    if (network_.embedding_factor != 1)
      for (int64_t d = 0; d < hidden; ++d) row[d] *= network_.embedding_factor;
  }
  for (size_t index = 0; index < network_.layers.size(); ++index) layer(index, count, threads);
  tokens_ += count;
}

void State::norm_rows(int norm, const float* x, float* y, int64_t count, int threads) {
  const int64_t hidden = network_.hidden;
  each_row(count, threads,
           [&](int64_t t) { kernels_.norm_row(norm_of(network_, norm), x + t * hidden, y + t * hidden); });
}

// Where the channels of a place begin for row t in made_, which holds one matrix of the group after the other.
const float* State::place(const Place& place, const std::vector<int>& group, int64_t count, int64_t t) const {
  const float* start = const_cast<State*>(this)->made_.data();
  for (int i = 0; i < place.matrix; ++i) start += count * matrix(network_, group[static_cast<size_t>(i)]).out();
  return start + t * matrix(network_, group[static_cast<size_t>(place.matrix)]).out() + place.at;
}

void State::group(const std::vector<int>& group, int64_t count, int threads) {
  int64_t width = 0;
  for (int index : group) width += matrix(network_, index).out();
  float* made = made_.get(count * width);
  float* parts[8];
  for (size_t i = 0; i < group.size(); ++i) {
    parts[i] = made;
    made += count * matrix(network_, group[i]).out();
  }
  products_.run(network_.matrices, group, normed_.data(), count, parts, threads);
}

void State::layer(size_t index, int64_t count, int threads) {
  const Layer& layer = network_.layers[index];
  const int64_t hidden = network_.hidden;
  float* normed = normed_.get(count * hidden);
  norm_rows(layer.norm, stream_.data(), normed, count, threads);
  group(layer.qkv, count, threads);
  turn(layer, count, threads);
  caches_[index]->reach(tokens_, tokens_ + count);
  const int64_t width = network_.kv_heads * network_.head_dim;
  each_row((count + 15) / 16, threads, [&](int64_t part) {
    for (int64_t t = part * 16; t < std::min(count, part * 16 + 16); ++t)
      caches_[index]->store(tokens_ + t, key_.data() + t * width, place(layer.value, layer.qkv, count, t));
  });
  caches_[index]->code(tokens_ + count);
  attention(layer, index, count, threads);
  float* added[] = {added_.get(count * hidden)};
  products_.run(network_.matrices, std::span(&layer.output, 1), mixed_.data(), count, added, threads);
  add(layer.output_norm, layer.output_factor, count, threads);
  norm_rows(layer.feed_norm, stream_.data(), normed, count, threads);
  group(layer.feed, count, threads);
  const int64_t inner = matrix(network_, layer.down).in();
  float* gated = inner_.get(count * inner);
  each_row(count, threads, [&](int64_t t) {
    const float* up = layer.gated ? place(layer.up, layer.feed, count, t) : nullptr;
    kernels_.gate_row(layer.activation, place(layer.gate, layer.feed, count, t), up, gated + t * inner, inner);
  });
  products_.run(network_.matrices, std::span(&layer.down, 1), gated, count, added, threads);
  add(layer.down_norm, layer.down_factor, count, threads);
}

// The stream takes what added_ holds.
void State::add(int norm, float factor, int64_t count, int threads) {
  const int64_t hidden = network_.hidden;
  each_row(count, threads, [&](int64_t t) {
    float* row = added_.data() + t * hidden;
    if (norm >= 0) kernels_.norm_row(norm_of(network_, norm), row, row);
    kernels_.add_row(stream_.data() + t * hidden, row, factor, hidden);
  });
}

namespace {

void rotate(const Rotary& rotary, int64_t position, const float* x, float* y) {
  const float* cosine = rotary.cosine + position * rotary.planes;
  const float* sine = rotary.sine + position * rotary.planes;
  for (int64_t i = 0; i < rotary.planes; ++i) {
    const int64_t a = rotary.interleaved ? 2 * i : i, b = rotary.interleaved ? 2 * i + 1 : i + rotary.planes;
    const float first = x[a], second = x[b];
    y[a] = first * cosine[i] - second * sine[i];
    y[b] = second * cosine[i] + first * sine[i];
  }
}

}  // namespace

// Queries and keys: norm, rotary embedding, scale. query_ is [kv heads][count * repeat][stride].
void State::turn(const Layer& layer, int64_t count, int threads) {
  const int64_t dim = network_.head_dim, repeat = network_.heads / network_.kv_heads;
  const Rotary* rotary = layer.rotary < 0 ? nullptr : &network_.rotaries[static_cast<size_t>(layer.rotary)];
  float* query = query_.get(network_.heads * count * stride_);
  float* key = key_.get(network_.kv_heads * count * dim);
  const auto one = [&](const float* x, float* y, int norm, int64_t position) {
    norm >= 0 ? kernels_.norm_row(norm_of(network_, norm), x, y) : static_cast<void>(std::copy(x, x + dim, y));
    if (rotary) rotate(*rotary, position, y, y);
  };
  each_row(count, threads, [&](int64_t t) {
    const float* from = place(layer.query, layer.qkv, count, t);
    for (int64_t h = 0; h < network_.heads; ++h) {
      float* to = query + ((h / repeat) * count * repeat + t * repeat + h % repeat) * stride_;
      one(from + h * dim, to, layer.query_norm, tokens_ + t);
      for (int64_t d = 0; d < dim; ++d) to[d] *= layer.scale;
      std::fill(to + dim, to + stride_, 0.0f);
    }
    from = place(layer.key, layer.qkv, count, t);
    for (int64_t h = 0; h < network_.kv_heads; ++h)
      one(from + h * dim, key + (t * network_.kv_heads + h) * dim, layer.key_norm, tokens_ + t);
  });
}

namespace {

constexpr int64_t kSplit = 512;  // tokens of the cache that one piece of work takes where there is one row

}  // namespace

void State::attention(const Layer& layer, size_t index, int64_t count, int threads) {
  const int64_t dim = network_.head_dim, repeat = network_.heads / network_.kv_heads;
  const int64_t rows = count * repeat, groups = (rows + kQueries - 1) / kQueries;
  int64_t* first = first_.get(rows);
  int64_t* last = last_.get(rows);
  for (int64_t row = 0; row < rows; ++row) {
    last[row] = tokens_ + row / repeat + 1;
    first[row] = layer.window > 0 ? std::max<int64_t>(0, last[row] - layer.window) : 0;
  }
  const int64_t begin = first[0] / kSplit * kSplit, end = last[rows - 1];
  const int64_t splits = count == 1 ? (end - begin + kSplit - 1) / kSplit : 1;
  const int64_t tasks = network_.kv_heads * groups * splits;
  float* sums = sums_.get(tasks * kQueries * stride_);
  float* peaks = peaks_.get(tasks * kQueries);
  float* totals = totals_.get(tasks * kQueries);
  float* mixed = mixed_.get(count * network_.heads * dim);
  const LayerCache& cache = *caches_[index];
  const Store keys = cache.keys(), values = cache.values();
  CodedStore coded_keys, coded_values;
  int64_t key_end = 0, value_end = 0;  // tokens that are coded
  if (cache.coded_keys()) coded_keys = cache.coded_keys()->store(), key_end = cache.coded_keys()->tokens();
  if (cache.coded_values()) coded_values = cache.coded_values()->store(), value_end = cache.coded_values()->tokens();
  const int64_t edges[] = {0, std::min(key_end, value_end), std::max(key_end, value_end), end};
  parallel_for(threads, tasks, [&](int64_t task, int) {
    const int64_t split = task % splits, group = task / splits % groups, head = task / splits / groups;
    const int64_t row = group * kQueries;
    Attend work;
    work.rows = static_cast<int>(std::min<int64_t>(kQueries, rows - row));
    work.query = query_.data() + (head * rows + row) * stride_;
    work.stride = stride_;
    work.head = head;
    work.first = first + row;
    work.last = last + row;
    work.cap = layer.cap;
    work.sums = sums + task * kQueries * stride_;
    work.peak = peaks + task * kQueries;
    work.total = totals + task * kQueries;
    std::fill(work.sums, work.sums + work.rows * stride_, 0.0f);
    std::fill(work.peak, work.peak + work.rows, kNothing);
    std::fill(work.total, work.total + work.rows, 0.0f);
    const int64_t start = splits > 1 ? std::max(first[row], begin + split * kSplit) : first[row];
    const int64_t stop = splits > 1 ? std::min(end, begin + (split + 1) * kSplit) : last[row + work.rows - 1];
    for (int part = 0; part < 3; ++part) {
      work.start = std::max(start, edges[part]);
      work.stop = std::min(stop, edges[part + 1]);
      if (work.start >= work.stop) continue;
      const bool coded_key = work.start < key_end, coded_value = work.start < value_end;
      work.keys = coded_key ? nullptr : &keys;
      work.coded_keys = coded_key ? &coded_keys : nullptr;
      work.values = coded_value ? nullptr : &values;
      work.coded_values = coded_value ? &coded_values : nullptr;
      kernels_.attend(work);
    }
  });
  // The pieces of a row, in their order.
  parallel_for(count > 1 ? threads : 1, network_.kv_heads * groups, [&](int64_t at, int) {
    const int64_t group = at % groups, head = at / groups;
    for (int64_t r = 0; r < std::min<int64_t>(kQueries, rows - group * kQueries); ++r) {
      const int64_t row = group * kQueries + r, task = at * splits;
      float* to = mixed + (row / repeat * network_.heads + head * repeat + row % repeat) * dim;
      float peak = kNothing, total = 0;
      for (int64_t s = 0; s < splits; ++s) peak = std::max(peak, peaks[(task + s) * kQueries + r]);
      std::fill(to, to + dim, 0.0f);
      for (int64_t s = 0; s < splits; ++s) {
        const float weight = std::exp(peaks[(task + s) * kQueries + r] - peak);
        total += weight * totals[(task + s) * kQueries + r];
        const float* from = sums + ((task + s) * kQueries + r) * stride_;
        for (int64_t d = 0; d < dim; ++d) to[d] += weight * from[d];
      }
      for (int64_t d = 0; d < dim; ++d) to[d] /= total;
    }
  });
}

void State::head(const float* last, float* logits, int threads) {
  float* normed = normed_.get(network_.hidden);
  kernels_.norm_row(norm_of(network_, network_.final_norm), last, normed);
  float* parts[] = {logits};
  products_.run(network_.matrices, std::span(&network_.head, 1), normed, 1, parts, threads);
  if (network_.logit_factor != 1 || network_.logit_cap > 0)
    kernels_.cap_row(logits, network_.logit_factor, network_.logit_cap, network_.vocabulary);
}

}  // namespace bw
