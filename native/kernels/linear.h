// Products of activations with packed weights; see core/table.h for what each function does.
#pragma once

#include "core/weight.h"

namespace bw::BW_ISA {

void pack_weight(const Weight& weight, const uint8_t* codes, uint8_t* packed, int threads);
void unpack_weight(const Weight& weight, uint8_t* codes, int threads);
void quantize_rows(const void* x, Float type, int64_t rows, int64_t in, int block, int8_t* codes, float* scale,
                   int32_t* sums, int threads);
void gather_rows(const void* x, Float type, int64_t rows, int64_t in, int block, float* values, float* sums,
                 int threads);
void linear_int8(const Weight& weight, const QuantizedRows& x, const Output& y, int threads);
void linear_float(const Weight& weight, const FloatRows& x, const Output& y, int threads);

}  // namespace bw::BW_ISA
