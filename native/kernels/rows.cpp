// Activations in the form that the products read.
#include <cmath>
#include <cstring>

#include "core/pool.h"
#include "kernels/linear.h"
#include "simd/simd.h"

namespace bw::BW_ISA {
namespace {

F32x16 load_any(const void* x, Float type, int64_t index) {
  if (type == Float::f32) return load(static_cast<const float*>(x) + index);
  const uint16_t* half = static_cast<const uint16_t*>(x) + index;
  return type == Float::f16 ? load_f16(half) : load_bf16(half);
}

float one(const void* x, Float type, int64_t index) {
  if (type == Float::f32) return static_cast<const float*>(x)[index];
  const uint16_t half = static_cast<const uint16_t*>(x)[index];
  return type == Float::f16 ? from_f16(half) : from_bf16(half);
}

// A block of a row as fp32, zeros behind its end.
void load_block(const void* x, Float type, int64_t start, int64_t count, int block, float* values) {
  int64_t k = 0;
  for (; k + 16 <= count; k += 16) store(values + k, load_any(x, type, start + k));
  for (; k < count; ++k) values[k] = one(x, type, start + k);
  for (; k < block; ++k) values[k] = 0;
}

// Rows that one chunk of work takes.
constexpr int64_t kRowsOfChunk = 4;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace

void quantize_rows(const void* x, Float type, int64_t rows, int64_t in, int block, int8_t* codes, float* scale,
                   int32_t* sums, int threads) {
  const int64_t blocks = (in + block - 1) / block;
  parallel_for(rows > kRowsOfChunk ? threads : 1, (rows + kRowsOfChunk - 1) / kRowsOfChunk, [&](int64_t chunk, int) {
    alignas(64) float values[256];
    const int64_t stop = smaller(rows, (chunk + 1) * kRowsOfChunk);
    for (int64_t row = chunk * kRowsOfChunk; row < stop; ++row) {
      for (int64_t b = 0; b < blocks; ++b) {
        load_block(x, type, row * in + b * block, smaller(block, in - b * block), block, values);
        F32x16 most = zero_f32(), probe = zero_f32();
        for (int k = 0; k < block; k += 16) {
          const F32x16 here = load(values + k);
          most = max(most, absolute(here));
          probe = fma(here, zero_f32(), probe);
        }
        // The probe is 0, or NaN where a value is NaN or Inf; it then reaches the output through the scale.
        const float peak = largest(most) + sum(probe);
        const int64_t place = b * rows + row;
        // A block of zeros may have any scale.
        const float step = peak == 0 ? 1.0f : peak / 127.0f;
        const F32x16 inverse = splat(std::isfinite(step) && step >= 1.2e-38f ? 1.0f / step : 0.0f);
        I32x16 total = zero_i32();
        int8_t* target = codes + place * block;
        for (int k = 0; k < block; k += 16) {
          const I32x16 code = to_i32(mul(load(values + k), inverse));
          total = add(total, code);
          store_low_bytes(target + k, code);
        }
        scale[place] = step;
        // The codes of NaN and Inf mean nothing, and their sum must not overflow what it is multiplied by.
        sums[place] = std::isfinite(step) ? sum(total) : 0;
      }
    }
  });
}

void gather_rows(const void* x, Float type, int64_t rows, int64_t in, int block, float* values, float* sums,
                 int threads) {
  const int64_t blocks = (in + block - 1) / block;
  parallel_for(rows > kRowsOfChunk ? threads : 1, (rows + kRowsOfChunk - 1) / kRowsOfChunk, [&](int64_t chunk, int) {
    const int64_t stop = smaller(rows, (chunk + 1) * kRowsOfChunk);
    for (int64_t row = chunk * kRowsOfChunk; row < stop; ++row) {
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t place = b * rows + row;
        float* target = values + place * block;
        load_block(x, type, row * in + b * block, smaller(block, in - b * block), block, target);
        F32x16 total = zero_f32();
        for (int k = 0; k < block; k += 16) total = add(total, load(target + k));
        sums[place] = sum(total);
      }
    }
  });
}

}  // namespace bw::BW_ISA
