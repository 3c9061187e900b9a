// The factor of second-order rounding; see core/table.h.
#pragma once

#include "core/factor.h"

namespace bw::BW_ISA {

bool upper_factor(const Factorization& factorization, float* packed, int threads);

}  // namespace bw::BW_ISA
