// A network of attention and multilayer blocks as plain data: what one step of decoding does.
#pragma once

#include <cstdint>
#include <vector>

#include "core/variants.h"
#include "core/weight.h"

namespace bw {

// A float matrix [out][in].
struct Dense {
  int64_t out = 0;
  int64_t in = 0;
  Float type = Float::f32;
  const void* values = nullptr;
  const float* bias = nullptr;
};

// How a linear layer multiplies: floats; packed codes in fp32, in integers, by byte tables, in bf16; ternary digits.
enum class Form { dense, exact, int8, lookup, bf16, ternary };

// A linear layer.
struct Matrix {
  Form form = Form::dense;
  Dense dense;
  Weight weight;      // exact, int8, lookup, bf16
  ByteTables tables;  // lookup
  HalfTable levels;   // bf16
  TernaryWeight ternary;
  const float* bias = nullptr;

  bool packed() const { return form != Form::dense; }
  int64_t out() const { return form == Form::dense ? dense.out : form == Form::ternary ? ternary.out : weight.out; }
  int64_t in() const { return form == Form::dense ? dense.in : form == Form::ternary ? ternary.in : weight.in; }
  int block() const { return form == Form::ternary ? TernaryWeight::kBlock : weight.block; }
  int64_t tiles() const { return (out() + kRows - 1) / kRows; }
  int64_t tile_bytes() const { return form == Form::ternary ? ternary.vectors() * kVector : weight.tile_bytes(); }
};

// gain * x / sqrt(mean(x^2) + eps) + shift; `centred`: of x less its mean.
struct Norm {
  int64_t dim = 0;
  const float* gain = nullptr;
  const float* shift = nullptr;  // or null
  float eps = 0;
  bool centred = false;
};

// Angles of a rotary position embedding: channel i is turned with i + planes, or 2 i with 2 i + 1 (interleaved).
struct Rotary {
  int64_t positions = 0;
  int64_t planes = 0;
  const float* cosine = nullptr;  // [positions][planes]
  const float* sine = nullptr;
  bool interleaved = false;
};

enum class Activation : int { none = 0, silu, gelu_tanh, gelu_erf, relu, relu_squared, gelu_sigmoid };

// Channels [at, ...) of the output of one matrix of a group.
struct Place {
  int matrix = 0;  // number within the group
  int64_t at = 0;
};

struct Layer {
  int norm = -1;         // before attention; numbers of norms and matrices in the network, -1: none
  std::vector<int> qkv;  // matrices that read the normed stream
  Place query, key, value;
  int query_norm = -1, key_norm = -1;
  int rotary = -1;
  float scale = 1;  // of the scores
  float cap = 0;
  int64_t window = 0;  // tokens that a token sees, itself included; 0: all
  int output = -1;
  int output_norm = -1;  // of what attention adds
  float output_factor = 1;
  int feed_norm = -1;
  std::vector<int> feed;  // gate and up
  Place gate, up;
  bool gated = true;
  Activation activation = Activation::silu;
  int down = -1;
  int down_norm = -1;
  float down_factor = 1;
};

struct Network {
  int64_t hidden = 0, vocabulary = 0;
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t context = 0;
  std::vector<Matrix> matrices;
  std::vector<Norm> norms;
  std::vector<Rotary> rotaries;
  std::vector<Layer> layers;
  int embedding = -1;
  float embedding_factor = 1;
  int final_norm = -1;
  int head = -1;
  float logit_factor = 1;
  float logit_cap = 0;
};

}  // namespace bw
