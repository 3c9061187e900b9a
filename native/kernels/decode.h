// The small operations of a decoding step; see core/table.h for what each function does.
#pragma once

#include "core/attention.h"
#include "core/network.h"

namespace bw::BW_ISA {

void norm_row(const Norm& norm, const float* x, float* y);
void add_row(float* x, const float* y, float factor, int64_t count);
void gate_row(Activation activation, const float* gate, const float* up, float* y, int64_t count);
void cap_row(float* x, float factor, float cap, int64_t count);
void linear_dense(const Dense& weight, const float* x, int64_t rows, float* y, int64_t first, int64_t last);
void attend(const Attend& work);

}  // namespace bw::BW_ISA
