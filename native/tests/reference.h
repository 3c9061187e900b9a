// What a network computes, in double precision and one token after the other.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "tests/network.h"

namespace bw::test {

double activated(Activation activation, double x);

class Reference {
 public:
  using Vector = std::vector<double>;

  explicit Reference(const Toy& toy) : toy_(toy), net_(toy.network), past_(net_.layers.size()) {}

  // Reads one more token; the logits after it.
  Vector read(int64_t id) {
    Vector stream;
    for (int64_t d = 0; d < net_.hidden; ++d)
      stream.push_back(net_.embedding_factor * toy_.value(net_.embedding, id, d));
    for (size_t index = 0; index < net_.layers.size(); ++index) {
      const Layer& layer = net_.layers[index];
      add(stream, normed(layer.output_norm, toy_.times(layer.output, attention(layer, past_[index], stream))),
          layer.output_factor);
      const std::vector<Vector> made = group(layer.feed, normed(layer.feed_norm, stream));
      Vector inner;
      for (int64_t i = 0; i < net_.matrices[static_cast<size_t>(layer.down)].in(); ++i) {
        const double gate = activated(layer.activation, channel(made, layer.gate, i));
        inner.push_back(layer.gated ? gate * channel(made, layer.up, i) : gate);
      }
      add(stream, normed(layer.down_norm, toy_.times(layer.down, inner)), layer.down_factor);
    }
    ++tokens_;
    Vector logits = toy_.times(net_.head, normed(net_.final_norm, stream));
    for (double& logit : logits) {
      logit *= net_.logit_factor;
      if (net_.logit_cap > 0) logit = net_.logit_cap * std::tanh(logit / net_.logit_cap);
    }
    return logits;
  }

 private:
  struct Past {
    std::vector<Vector> keys, values;  // [tokens][kv heads * head_dim]
  };

  static void add(Vector& x, const Vector& y, double factor) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += factor * y[i];
  }
  static double channel(const std::vector<Vector>& made, const Place& place, int64_t i) {
    return made[static_cast<size_t>(place.matrix)][static_cast<size_t>(place.at + i)];
  }
  std::vector<Vector> group(const std::vector<int>& matrices, const Vector& x) const {
    std::vector<Vector> made;
    for (int index : matrices) made.push_back(toy_.times(index, x));
    return made;
  }

  Vector normed(int index, Vector x) const {
    if (index < 0) return x;
    const Norm& norm = net_.norms[static_cast<size_t>(index)];
    double mean = 0, square = 0;
    for (double value : x) mean += norm.centred ? value / static_cast<double>(x.size()) : 0;
    for (double value : x) square += (value - mean) * (value - mean) / static_cast<double>(x.size());
    for (size_t i = 0; i < x.size(); ++i)
      x[i] = (x[i] - mean) / std::sqrt(square + norm.eps) * norm.gain[i] + (norm.shift ? norm.shift[i] : 0.0f);
    return x;
  }

  // One head's query or key: normed and turned.
  Vector turned(const Layer& layer, int norm, const std::vector<Vector>& made, const Place& place, int64_t head) const {
    Vector x;
    for (int64_t d = 0; d < net_.head_dim; ++d) x.push_back(channel(made, place, head * net_.head_dim + d));
    x = normed(norm, x);
    if (layer.rotary < 0) return x;
    const Rotary& rotary = net_.rotaries[static_cast<size_t>(layer.rotary)];
    for (int64_t i = 0; i < rotary.planes; ++i) {
      const auto a = static_cast<size_t>(rotary.interleaved ? 2 * i : i);
      const auto b = static_cast<size_t>(rotary.interleaved ? 2 * i + 1 : i + rotary.planes);
      const double cosine = rotary.cosine[tokens_ * rotary.planes + i], sine = rotary.sine[tokens_ * rotary.planes + i];
      const double first = x[a], second = x[b];
      x[a] = first * cosine - second * sine, x[b] = second * cosine + first * sine;
    }
    return x;
  }

  Vector attention(const Layer& layer, Past& past, const Vector& stream) const {
    const int64_t dim = net_.head_dim, repeat = net_.heads / net_.kv_heads;
    const std::vector<Vector> made = group(layer.qkv, normed(layer.norm, stream));
    Vector keys, values, mixed;
    for (int64_t head = 0; head < net_.kv_heads; ++head)
      for (double value : turned(layer, layer.key_norm, made, layer.key, head)) keys.push_back(value);
    for (int64_t d = 0; d < net_.kv_heads * dim; ++d) values.push_back(channel(made, layer.value, d));
    past.keys.push_back(keys), past.values.push_back(values);
    const auto stop = static_cast<int64_t>(past.keys.size());
    const int64_t start = layer.window > 0 ? std::max<int64_t>(0, stop - layer.window) : 0;
    for (int64_t head = 0; head < net_.heads; ++head) {
      const Vector query = turned(layer, layer.query_norm, made, layer.query, head);
      const int64_t first = head / repeat * dim;
      Vector scores;
      for (int64_t t = start; t < stop; ++t) {
        double score = 0;
        for (int64_t d = 0; d < dim; ++d)
          score += query[static_cast<size_t>(d)] * past.keys[static_cast<size_t>(t)][static_cast<size_t>(first + d)];
        score *= layer.scale;
        scores.push_back(layer.cap > 0 ? layer.cap * std::tanh(score / layer.cap) : score);
      }
      const double most = *std::max_element(scores.begin(), scores.end());
      double all = 0;
      for (double& score : scores) all += score = std::exp(score - most);
      for (int64_t d = 0; d < dim; ++d) {
        double sum = 0;
        for (int64_t t = start; t < stop; ++t)
          sum += scores[static_cast<size_t>(t - start)] / all *
                 past.values[static_cast<size_t>(t)][static_cast<size_t>(first + d)];
        mixed.push_back(sum);
      }
    }
    return mixed;
  }

  const Toy& toy_;
  const Network& net_;
  std::vector<Past> past_;
  int64_t tokens_ = 0;
};

}  // namespace bw::test
