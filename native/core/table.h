// What an instruction set offers: one table of functions for each, filled by isa/table.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/weight.h"

namespace bw {

struct Kernels {
  const char* name;

  // -- linear: y = x W^T + bias ---------------------------------------------------------------------------------
  // Codes of one byte [out][in] into the layout of a Weight.
  void (*pack_weight)(const Weight&, const uint8_t* codes, uint8_t* packed, int threads);
  // The inverse.
  void (*unpack_weight)(const Weight&, uint8_t* codes, int threads);
  // Rows x[rows][in] to 8-bit codes, a scale for every row and block: absmax / 127, to nearest.
  void (*quantize_rows)(const void* x, Float type, int64_t rows, int64_t in, int block, int8_t* codes, float* scale,
                        int32_t* sums, int threads);
  // Rows as floats in blocks, with their sums.
  void (*gather_rows)(const void* x, Float type, int64_t rows, int64_t in, int block, float* values, float* sums,
                      int threads);
  // Products of 8-bit codes in integers (affine weights only).
  void (*linear_int8)(const Weight&, const QuantizedRows&, const Output&, int threads);
  // Products in fp32, activations as they are.
  void (*linear_float)(const Weight&, const FloatRows&, const Output&, int threads);
};

// The tables of this build that the processor can run, the fastest first; ends with scalar.
const Kernels* const* available(size_t* count);

#define BW_TABLE(isa) \
  namespace isa {     \
  const Kernels& table(); \
  }
BW_TABLE(avx512)
BW_TABLE(avx2)
BW_TABLE(neon)
BW_TABLE(scalar)
#undef BW_TABLE

}  // namespace bw
