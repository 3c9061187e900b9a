// Products with float matrices.
#include "kernels/decode.h"
#include "kernels/planes.h"

namespace bw::BW_ISA {
namespace {

template <Float type>
inline F32x16 load_as(const void* values, int64_t index) {
  if constexpr (type == Float::f32) return load(static_cast<const float*>(values) + index);
  const uint16_t* half = static_cast<const uint16_t*>(values) + index;
  if constexpr (type == Float::f16) return load_f16(half);
  return load_bf16(half);
}

template <Float type>
inline float one_as(const void* values, int64_t index) {
  if constexpr (type == Float::f32) return static_cast<const float*>(values)[index];
  const uint16_t half = static_cast<const uint16_t*>(values)[index];
  if constexpr (type == Float::f16) return from_f16(half);
  return from_bf16(half);
}

// Bytes ahead that are asked for, in every one of the rows that are read at once.
constexpr int64_t kAhead = 1024;

template <Float type, int rows, int outs>
void micro(const Dense& weight, const float* x, int64_t row, int64_t out, float* y) {
  F32x16 acc[rows][outs];
  unroll<rows>([&](auto r) { unroll<outs>([&](auto o) { acc[r][o] = zero_f32(); }); });
  const int64_t in = weight.in;
  const char* bytes = static_cast<const char*>(weight.values);
  constexpr int64_t size = type == Float::f32 ? 4 : 2;
  int64_t k = 0;
  for (; k + 16 <= in; k += 16) {
    F32x16 w[outs];
    unroll<outs>([&](auto o) {
      w[o] = load_as<type>(weight.values, (out + o) * in + k);
      prefetch(bytes + ((out + o) * in + k) * size + kAhead);
    });
    unroll<rows>([&](auto r) {
      const F32x16 here = load(x + (row + r) * in + k);
      unroll<outs>([&](auto o) { acc[r][o] = fma(here, w[o], acc[r][o]); });
    });
  }
  unroll<rows>([&](auto r) {
    unroll<outs>([&](auto o) {
      float total = sum(acc[r][o]);
      for (int64_t j = k; j < in; ++j) total += x[(row + r) * in + j] * one_as<type>(weight.values, (out + o) * in + j);
      y[(row + r) * weight.out + out + o] = total + (weight.bias ? weight.bias[out + o] : 0);
    });
  });
}

template <Float type, int outs>
void all_rows(const Dense& weight, const float* x, int64_t rows, int64_t out, float* y) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) micro<type, 4, outs>(weight, x, row, out, y);
  for (; row < rows; ++row) micro<type, 1, outs>(weight, x, row, out, y);
}

template <Float type>
void run(const Dense& weight, const float* x, int64_t rows, float* y, int64_t first, int64_t last) {
  int64_t out = first;
  for (; out + 4 <= last; out += 4) all_rows<type, 4>(weight, x, rows, out, y);
  for (; out < last; ++out) all_rows<type, 1>(weight, x, rows, out, y);
}

}  // namespace

void linear_dense(const Dense& weight, const float* x, int64_t rows, float* y, int64_t first, int64_t last) {
  switch (weight.type) {
    case Float::f32: return run<Float::f32>(weight, x, rows, y, first, last);
    case Float::f16: return run<Float::f16>(weight, x, rows, y, first, last);
    case Float::bf16: return run<Float::bf16>(weight, x, rows, y, first, last);
  }
}

}  // namespace bw::BW_ISA
