// Products beside the plain ones; see core/variants.h for what they read.
#pragma once

#include "core/table.h"
#include "simd/simd.h"

namespace bw::BW_ISA {

void linear_lookup(const Weight& weight, const ByteTables& tables, const QuantizedRows& x, const Output& y,
                   int threads);
#if BW_IS == BW_IS_avx512
void gather_halves(const void* x, Float type, int64_t rows, int64_t in, int block, uint16_t* values, float* sums,
                   int threads);
void linear_bf16(const Weight& weight, const HalfTable& table, const HalfRows& x, const Output& y, int threads);
#else
constexpr decltype(Kernels::gather_halves) gather_halves = nullptr;
constexpr decltype(Kernels::linear_bf16) linear_bf16 = nullptr;
#endif
void code_rows(const Coding& coding, const void* x, Float type, int64_t rows, int64_t in, int block, int8_t* codes,
               float* scale, int32_t* sums, float* shift, float* values, int threads);
void to_floats(const void* x, Float type, int64_t count, float* values);
void add_terms(const Terms& terms, const float* x, int64_t rows, int64_t in, int64_t out, const float* main,
               const Output& y, int threads);
void window_rows(const Windows& windows, int64_t image, int64_t first, int64_t count, float* rows);
void rows_to_image(const float* rows, int64_t count, int64_t out, int64_t positions, int64_t place, Float type,
                   void* y);
void linear_bits(const Weight& weight, const QuantizedRows& x, int bits, int32_t lowest, const int32_t* counts,
                 const Output& y, int threads);
void linear_sums(const Weight& weight, const QuantizedRows& x, bool ternary, const Output& y, int threads);
void linear_ternary(const TernaryWeight& weight, const QuantizedRows& x, const Output& y, int threads);
void linear_triples(const TernaryWeight& weight, const QuantizedRows& x, const Output& y, int threads);
void linear_products(const Weight& weight, const ProductTable& table, const QuantizedRows& x, const Output& y,
                     int threads);
void linear_nibbles(const Weight& weight, const int32_t* sums, const QuantizedRows& x, const Output& y, int threads);
void linear_two_level(const Weight& weight, const TwoLevel& levels, const QuantizedRows& x, const Output& y,
                      int threads);
void add_blocks(const Weight& weight, const int32_t* which, const QuantizedRows& x, const float* main, const Output& y,
                int threads);
void linear_mixed(const Weight& weight, int64_t wide, const QuantizedRows& x, const Output& y, int threads);

}  // namespace bw::BW_ISA
