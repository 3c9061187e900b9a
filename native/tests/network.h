// Small random networks, and what they compute, in double precision and one token after the other.
#pragma once

#include <deque>
#include <vector>

#include "core/network.h"
#include "tests/weights.h"

namespace bw::test {

// A network with everything that it points to.
class Toy {
 public:
  Network network;

  // `exact`: matrices whose products read the activations as they are.
  Toy(const Kernels& kernels, Random& random, bool exact) : kernels_(kernels), random_(random), exact_(exact) {
    network.hidden = random.number(2, 40), network.vocabulary = random.number(2, 40);
    network.kv_heads = random.number(1, 2), network.heads = network.kv_heads * random.number(1, 3);
    network.head_dim = 2 * random.number(1, 12), network.context = 700;
    for (int64_t i = random.number(1, 2); i > 0; --i) add_layer();
    // Rows of an embedding are read one by one, which not every form of a matrix serves.
    exact_ = true;
    network.embedding = matrix(network.vocabulary, network.hidden);
    exact_ = exact;
    network.head = matrix(network.vocabulary, network.hidden);
    network.final_norm = norm(network.hidden);
    network.embedding_factor = random.one_of({1.0f, 3.0f});
    network.logit_factor = random.one_of({1.0f, 0.5f});
    network.logit_cap = random.one_of({0.0f, 20.0f});
  }

  double value(int index, int64_t row, int64_t column) const {
    const Made& made = made_[static_cast<size_t>(index)];
    return made.packed ? made.packed->value(row, column)
                       : made.dense->values[row * network.matrices[static_cast<size_t>(index)].in() + column];
  }
  std::vector<double> times(int index, const std::vector<double>& x) const {
    const Matrix& matrix = network.matrices[static_cast<size_t>(index)];
    std::vector<double> y;
    for (int64_t row = 0; row < matrix.out(); ++row) {
      double sum = matrix.bias ? matrix.bias[row] : 0;
      for (int64_t k = 0; k < matrix.in(); ++k) sum += value(index, row, k) * x[static_cast<size_t>(k)];
      y.push_back(sum);
    }
    return y;
  }

 private:
  struct Made {
    std::unique_ptr<Case> packed;
    std::unique_ptr<Rows> dense;
  };

  const float* floats(int64_t count, float size, float middle) {
    Exact<float>& made = floats_.emplace_back(count);
    for (int64_t i = 0; i < count; ++i) made[i] = middle + size * random_.normal();
    return made.data();
  }

  int matrix(int64_t out, int64_t in) {
    Matrix made;
    made.bias = random_.coin() ? floats(out, 0.2f, 0) : nullptr;
    Made kept;
    const float size = 1 / std::sqrt(static_cast<float>(in));
    if (random_.coin()) {
      kept.dense = std::make_unique<Rows>(rows_of(random_, out, in, static_cast<Float>(random_.number(0, 2))));
      for (int64_t i = 0; i < out * in; ++i) {
        const float value = size * random_.normal();
        if (kept.dense->type == Float::f16) kept.dense->halves[i] = to_f16(value);
        if (kept.dense->type == Float::bf16) kept.dense->halves[i] = to_bf16(value);
        kept.dense->values[i] = kept.dense->type == Float::f32   ? value
                                : kept.dense->type == Float::f16 ? from_f16(kept.dense->halves[i])
                                                                 : from_bf16(kept.dense->halves[i]);
      }
      made.dense = {out, in, kept.dense->type, kept.dense->data(), made.bias};
    } else {
      Weight w = random_weight(random_);
      w.out = out, w.in = in, w.bits = static_cast<int>(random_.number(2, 8));
      w.levels = exact_ ? random_.one_of({Levels::affine, Levels::table}) : Levels::affine;
      if (w.block == 16 && w.bits % 2) w.block = 32;
      w.blocks = (in + w.block - 1) / w.block;
      w.groups = (w.blocks + w.blocks_per_scale - 1) / w.blocks_per_scale;
      kept.packed = std::make_unique<Case>(make_case(random_, w));
      shrink(*kept.packed, size);
      kernels_.pack_weight(kept.packed->weight, kept.packed->codes.data(), kept.packed->packed.data(), 1);
      made.form = exact_ ? Form::exact : Form::int8;
      made.weight = kept.packed->weight;
    }
    made_.push_back(std::move(kept));
    network.matrices.push_back(made);
    return static_cast<int>(network.matrices.size()) - 1;
  }

  // Weights of about `size`, so that nothing grows from layer to layer.
  static void shrink(Case& c, float size) {
    const float range = static_cast<float>(1 << c.weight.bits);
    for (int64_t i = 0; i < c.zeros.size(); ++i)
      c.zeros[i] = range / 2, c.zero_codes[i] = static_cast<uint8_t>(range / 2);
    c.weight.zero = static_cast<int32_t>(range / 2);
    const float factor = size / (c.weight.levels == Levels::affine ? range / 3 : 1.5f);
    for (int64_t i = 0; i < c.scale.size(); ++i) c.scale[i] *= factor;
    for (int64_t i = 0; i < c.half_scale.size(); ++i)
      c.half_scale[i] = c.weight.scale_type == Float::f16 ? to_f16(from_f16(c.half_scale[i]) * factor)
                                                          : to_bf16(from_bf16(c.half_scale[i]) * factor);
  }

  int norm(int64_t dim) {
    network.norms.push_back(
        {dim, floats(dim, 0.2f, 1), random_.coin() ? floats(dim, 0.2f, 0) : nullptr, 1e-5f, random_.coin()});
    return static_cast<int>(network.norms.size()) - 1;
  }
  int maybe_norm(int64_t dim) { return random_.coin() ? norm(dim) : -1; }

  void add_layer() {
    const int64_t dim = network.head_dim, queries = network.heads * dim, keys = network.kv_heads * dim;
    Layer layer;
    layer.norm = norm(network.hidden);
    if (random_.coin()) {
      layer.qkv = {matrix(queries + 2 * keys, network.hidden)};
      layer.query = {0, 0}, layer.key = {0, queries}, layer.value = {0, queries + keys};
    } else {
      layer.qkv = {matrix(keys, network.hidden), matrix(queries + 1, network.hidden), matrix(keys, network.hidden)};
      layer.query = {1, 1}, layer.key = {0, 0}, layer.value = {2, 0};
    }
    layer.query_norm = maybe_norm(dim), layer.key_norm = maybe_norm(dim);
    if (random_.coin()) layer.rotary = rotary();
    layer.scale = 1 / std::sqrt(static_cast<float>(dim));
    layer.cap = random_.one_of({0.0f, 5.0f});
    layer.window = random_.one_of<int64_t>({0, 0, 1, 20});
    layer.output = matrix(network.hidden, queries);
    layer.output_norm = maybe_norm(network.hidden);
    layer.output_factor = random_.one_of({1.0f, 0.3f});
    layer.feed_norm = norm(network.hidden);
    const int64_t inner = random_.number(1, 50);
    layer.gated = random_.coin();
    layer.feed = {matrix(2 * inner, network.hidden)};
    layer.gate = {0, 0}, layer.up = {0, layer.gated ? inner : 0};
    layer.activation = static_cast<Activation>(random_.number(0, 6));
    layer.down = matrix(network.hidden, inner);
    layer.down_norm = maybe_norm(network.hidden);
    network.layers.push_back(layer);
  }

  int rotary() {
    const int64_t planes = random_.number(1, network.head_dim / 2), count = network.context * planes;
    Exact<float>& cosine = floats_.emplace_back(count);
    Exact<float>& sine = floats_.emplace_back(count);
    for (int64_t i = 0; i < count; ++i) {
      const double angle = static_cast<double>(i / planes) / std::pow(100.0, static_cast<double>(i % planes) / planes);
      cosine[i] = static_cast<float>(std::cos(angle)), sine[i] = static_cast<float>(std::sin(angle));
    }
    network.rotaries.push_back({network.context, planes, cosine.data(), sine.data(), random_.coin()});
    return static_cast<int>(network.rotaries.size()) - 1;
  }

  const Kernels& kernels_;
  Random& random_;
  bool exact_;
  std::vector<Made> made_;
  std::deque<Exact<float>> floats_;
};

}  // namespace bw::test
