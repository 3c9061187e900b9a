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
      set_runs({{this, 0, here}});
      pass(ids + start, threads);
      if (start + here == count) head(stream_.data() + (here - 1) * network_.hidden, 1, logits, threads);
    }
  } catch (...) {
    // Coded groups cannot go back exactly.
    crop(form_.plain() ? before : 0);
    throw;
  }
}

void State::step(State* const* states, int64_t count, const int64_t* ids, float* logits, int threads) {
  std::vector<Run> runs;
  std::vector<int64_t> before;
  for (int64_t i = 0; i < count; ++i) {
    runs.push_back({states[i], i, 1});
    before.push_back(states[i]->tokens_);
  }
  State& leader = *states[0];
  try {
    leader.set_runs(std::move(runs));
    leader.pass(ids, threads);
    leader.head(leader.stream_.data(), count, logits, threads);
  } catch (...) {
    for (int64_t i = 0; i < count; ++i) states[i]->crop(states[i]->form_.plain() ? before[static_cast<size_t>(i)] : 0);
    throw;
  }
}

void State::set_runs(std::vector<Run> runs) {
  runs_ = std::move(runs);
  rows_.clear();
  for (const Run& run : runs_)
    for (int64_t t = 0; t < run.count; ++t) rows_.push_back({run.state, run.state->tokens_ + t});
}

void State::pass(const int64_t* ids, int threads) {
  const int64_t hidden = network_.hidden, count = static_cast<int64_t>(rows_.size());
  float* stream = stream_.get(count * hidden);
  const Matrix& table = matrix(network_, network_.embedding);
  for (int64_t t = 0; t < count; ++t) {
    float* row = stream + t * hidden;
    products_.row(table, ids[t], row);
    if (network_.embedding_factor != 1)
      for (int64_t d = 0; d < hidden; ++d) row[d] *= network_.embedding_factor;
  }
  for (size_t index = 0; index < network_.layers.size(); ++index) layer(index, count, threads);
  for (const Run& run : runs_) run.state->tokens_ += run.count;
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
  multiply(group, normed_.data(), count, parts, threads);
}

void State::multiply(std::span<const int> chosen, const float* x, int64_t count, float* const* y, int threads) {
  if (runs_.size() > 1) return products_.run_apart(network_.matrices, chosen, x, count, y, threads);
  products_.run(network_.matrices, chosen, x, count, y, threads);
}

void State::layer(size_t index, int64_t count, int threads) {
  const Layer& layer = network_.layers[index];
  const int64_t hidden = network_.hidden;
  float* normed = normed_.get(count * hidden);
  norm_rows(layer.norm, stream_.data(), normed, count, threads);
  group(layer.qkv, count, threads);
  turn(layer, count, threads);
  for (const Run& run : runs_) run.state->caches_[index]->reach(run.state->tokens_, run.state->tokens_ + run.count);
  const int64_t width = network_.kv_heads * network_.head_dim;
  each_row((count + 15) / 16, threads, [&](int64_t part) {
    for (int64_t t = part * 16; t < std::min(count, part * 16 + 16); ++t) {
      const Row& row = rows_[static_cast<size_t>(t)];
      row.state->caches_[index]->store(row.position, key_.data() + t * width, place(layer.value, layer.qkv, count, t));
    }
  });
  for (const Run& run : runs_) run.state->caches_[index]->code(run.state->tokens_ + run.count);
  attention(layer, index, count, threads);
  float* added[] = {added_.get(count * hidden)};
  multiply(std::span(&layer.output, 1), mixed_.data(), count, added, threads);
  add(layer.output_norm, layer.output_factor, count, threads);
  norm_rows(layer.feed_norm, stream_.data(), normed, count, threads);
  group(layer.feed, count, threads);
  const int64_t inner = matrix(network_, layer.down).in();
  float* gated = inner_.get(count * inner);
  each_row(count, threads, [&](int64_t t) {
    const float* up = layer.gated ? place(layer.up, layer.feed, count, t) : nullptr;
    kernels_.gate_row(layer.activation, place(layer.gate, layer.feed, count, t), up, gated + t * inner, inner);
  });
  multiply(std::span(&layer.down, 1), gated, count, added, threads);
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
    const int64_t position = rows_[static_cast<size_t>(t)].position;
    const float* from = place(layer.query, layer.qkv, count, t);
    for (int64_t h = 0; h < network_.heads; ++h) {
      float* to = query + ((h / repeat) * count * repeat + t * repeat + h % repeat) * stride_;
      one(from + h * dim, to, layer.query_norm, position);
      for (int64_t d = 0; d < dim; ++d) to[d] *= layer.scale;
      std::fill(to + dim, to + stride_, 0.0f);
    }
    from = place(layer.key, layer.qkv, count, t);
    for (int64_t h = 0; h < network_.kv_heads; ++h)
      one(from + h * dim, key + (t * network_.kv_heads + h) * dim, layer.key_norm, position);
  });
}

namespace {

constexpr int64_t kSplit = 512;  // tokens of the cache that one piece of work takes where there is one row

}  // namespace

struct State::Part {
  int64_t row;           // its first row of a head's queries
  int64_t rows, groups;  // its rows, and how many times kQueries they are
  int64_t begin, end;    // tokens of the cache
  int64_t splits;        // pieces of these tokens
  int64_t task, tasks;   // numbers of its pieces of work
  Store keys, values;
  CodedStore coded_keys, coded_values;
  int64_t key_end = 0, value_end = 0;  // tokens that are coded
};

State::Part State::part(const Layer& layer, size_t index, const Run& run, int64_t task) const {
  const int64_t repeat = network_.heads / network_.kv_heads;
  Part made;
  made.row = run.first * repeat;
  made.rows = run.count * repeat;
  made.groups = (made.rows + kQueries - 1) / kQueries;
  const int64_t tokens = run.state->tokens_;
  made.begin = layer.window > 0 ? std::max<int64_t>(0, tokens + 1 - layer.window) / kSplit * kSplit : 0;
  made.end = tokens + run.count;
  made.splits = run.count == 1 ? (made.end - made.begin + kSplit - 1) / kSplit : 1;
  made.task = task;
  made.tasks = network_.kv_heads * made.groups * made.splits;
  const LayerCache& cache = *run.state->caches_[index];
  made.keys = cache.keys();
  made.values = cache.values();
  if (const CodedSide* side = cache.coded_keys()) made.coded_keys = side->store(), made.key_end = side->tokens();
  if (const CodedSide* side = cache.coded_values()) made.coded_values = side->store(), made.value_end = side->tokens();
  return made;
}

// One piece of work: up to kQueries rows of one head with some tokens of the cache; `rows` are all rows of a head.
void State::attend(const Layer& layer, const Part& part, int64_t task, int64_t rows) {
  const int64_t local = task - part.task;
  const int64_t split = local % part.splits, group = local / part.splits % part.groups;
  const int64_t own = group * kQueries, row = part.row + own;
  Attend work;
  work.head = local / part.splits / part.groups;
  work.rows = static_cast<int>(std::min<int64_t>(kQueries, part.rows - own));
  work.query = query_.data() + (work.head * rows + row) * stride_;
  work.stride = stride_;
  work.first = first_.data() + row;
  work.last = last_.data() + row;
  work.cap = layer.cap;
  work.sums = sums_.data() + task * kQueries * stride_;
  work.peak = peaks_.data() + task * kQueries;
  work.total = totals_.data() + task * kQueries;
  std::fill(work.sums, work.sums + work.rows * stride_, 0.0f);
  std::fill(work.peak, work.peak + work.rows, kNothing);
  std::fill(work.total, work.total + work.rows, 0.0f);
  int64_t start = work.first[0], stop = work.last[work.rows - 1];
  if (part.splits > 1) {
    start = std::max(start, part.begin + split * kSplit);
    stop = std::min(part.end, part.begin + (split + 1) * kSplit);
  }
  const int64_t edges[] = {0, std::min(part.key_end, part.value_end), std::max(part.key_end, part.value_end), part.end};
  for (int piece = 0; piece < 3; ++piece) {
    work.start = std::max(start, edges[piece]);
    work.stop = std::min(stop, edges[piece + 1]);
    if (work.start >= work.stop) continue;
    const bool coded_key = work.start < part.key_end, coded_value = work.start < part.value_end;
    work.keys = coded_key ? nullptr : &part.keys;
    work.coded_keys = coded_key ? &part.coded_keys : nullptr;
    work.values = coded_value ? nullptr : &part.values;
    work.coded_values = coded_value ? &part.coded_values : nullptr;
    kernels_.attend(work);
  }
}

// The pieces of the rows of one group and head, in their order.
void State::join(const Part& part, int64_t at) {
  const int64_t dim = network_.head_dim, repeat = network_.heads / network_.kv_heads;
  const int64_t group = at % part.groups, head = at / part.groups, task = part.task + at * part.splits;
  for (int64_t r = 0; r < std::min<int64_t>(kQueries, part.rows - group * kQueries); ++r) {
    const int64_t row = part.row + group * kQueries + r;
    float* to = mixed_.data() + (row / repeat * network_.heads + head * repeat + row % repeat) * dim;
    float peak = kNothing, total = 0;
    for (int64_t s = 0; s < part.splits; ++s) peak = std::max(peak, peaks_.data()[(task + s) * kQueries + r]);
    std::fill(to, to + dim, 0.0f);
    for (int64_t s = 0; s < part.splits; ++s) {
      const float weight = std::exp(peaks_.data()[(task + s) * kQueries + r] - peak);
      total += weight * totals_.data()[(task + s) * kQueries + r];
      const float* from = sums_.data() + ((task + s) * kQueries + r) * stride_;
      for (int64_t d = 0; d < dim; ++d) to[d] += weight * from[d];
    }
    for (int64_t d = 0; d < dim; ++d) to[d] /= total;
  }
}

void State::attention(const Layer& layer, size_t index, int64_t count, int threads) {
  const int64_t repeat = network_.heads / network_.kv_heads, rows = count * repeat;
  int64_t* first = first_.get(rows);
  int64_t* last = last_.get(rows);
  for (int64_t row = 0; row < rows; ++row) {
    last[row] = rows_[static_cast<size_t>(row / repeat)].position + 1;
    first[row] = layer.window > 0 ? std::max<int64_t>(0, last[row] - layer.window) : 0;
  }
  std::vector<Part> parts;
  int64_t tasks = 0, joins = 0;
  for (const Run& run : runs_) {
    parts.push_back(part(layer, index, run, tasks));
    tasks += parts.back().tasks;
    joins = std::max(joins, network_.kv_heads * parts.back().groups);
  }
  sums_.get(tasks * kQueries * stride_);
  peaks_.get(tasks * kQueries);
  totals_.get(tasks * kQueries);
  mixed_.get(count * network_.heads * network_.head_dim);
  const auto part_of = [&](int64_t task) -> const Part& {
    size_t i = 0;
    while (task >= parts[i].task + parts[i].tasks) ++i;
    return parts[i];
  };
  parallel_for(threads, tasks, [&](int64_t task, int) { attend(layer, part_of(task), task, rows); });
  // A step has few rows: one part after the other, each by one thread; a prompt has one part with many.
  const int64_t all = static_cast<int64_t>(parts.size()) * joins;
  parallel_for(count > 1 ? threads : 1, all, [&](int64_t at, int) {
    const Part& part = parts[static_cast<size_t>(at / joins)];
    if (at % joins < network_.kv_heads * part.groups) join(part, at % joins);
  });
}

void State::head(const float* last, int64_t count, float* logits, int threads) {
  const int64_t hidden = network_.hidden, vocabulary = network_.vocabulary;
  float* normed = normed_.get(count * hidden);
  for (int64_t t = 0; t < count; ++t)
    kernels_.norm_row(norm_of(network_, network_.final_norm), last + t * hidden, normed + t * hidden);
  float* parts[] = {logits};
  multiply(std::span(&network_.head, 1), normed, count, parts, threads);
  if (network_.logit_factor != 1 || network_.logit_cap > 0)
    for (int64_t t = 0; t < count; ++t)
      kernels_.cap_row(logits + t * vocabulary, network_.logit_factor, network_.logit_cap, vocabulary);
}

}  // namespace bw
