// Codes of vectors; see core/table.h for what each function does.
#pragma once

#include "core/vectors.h"
#include "core/weight.h"

namespace bw::BW_ISA {

void beam_search(const Books& books, const float* x, int64_t count, int32_t* index, int threads);
void nearest_e8p(const BasePoints& base, const float* x, int64_t count, int32_t* codes, int threads);
void lattice_int8(const Weight& weight, const LatticeTables& tables, const QuantizedRows& x, const Output& y,
                  int threads);
void lattice_float(const Weight& weight, const LatticeTables& tables, const FloatRows& x, const Output& y, int threads);
void additive_float(const AdditiveWeight& weight, const void* x, Float type, int64_t rows, const Output& y,
                    int threads);

}  // namespace bw::BW_ISA
