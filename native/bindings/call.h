// One product with everything that belongs to it, checked; see call.cpp.
#pragma once

#include "bindings/library.h"
#include "bindings/spans.h"
#include "bindings/workspace.h"
#include "core/variants.h"
#include "core/vectors.h"

namespace bw {

// Which kernel multiplies.
enum class Way : int {
  exact = 0,
  int8 = 1,
  lookup = 2,
  bf16 = 3,
  ternary = 4,
  bits = 5,
  sums = 6,
  pairs = 7,
  triples = 8,
  products = 9,
  lattice = 10,
  lattice_exact = 11,
  additive = 12,
  nibbles = 13,
  two_level = 14,
  mixed = 15,
};
constexpr int kWays = 16;

// A pointer to `count` floats of a type.
inline void* floats(Span span, Float type, int64_t count, const char* name) {
  if (type == Float::f32) return buffer(span).as<float>(product(count, 4), name);
  return buffer(span).as<uint16_t>(product(count, 2), name);
}

struct Call {
  const Kernels& kernels;
  Way way;
  const Weight* weight;
  const TernaryWeight* ternary;
  const ByteTables* tables;
  HalfTable levels;
  const VectorTables* vectors;
  const int32_t* counts;  // whole numbers beside the weight, as its kernel reads them
  TwoLevel two_level;
  const Terms* chosen;  // where they hold chosen blocks
  const Coding* coding;
  const void* x;
  Float type;
  int64_t rows, in, out;
  int threads;

  int block() const { return ternary ? ternary->block() : weight ? weight->block : 16; }
  bool additive() const { return vectors && vectors->additive.out; }
  int64_t blocks() const { return (in + block() - 1) / block(); }
};

// Checks that the parts go with each other; x and rows are still to be set.
Call make_call(const Library& self, int way, const Weight* weight, const TernaryWeight* ternary,
               const ByteTables* tables, const VectorTables* vectors, Span levels, const Terms* terms,
               const Coding* coding, Float type, int threads);
// The product and its terms.
void add_up(const Call& call, const Terms* terms, const Output& output);

}  // namespace bw
