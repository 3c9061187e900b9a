// Coordinate descent; see core/table.h for what each function does.
#pragma once

#include "core/descent.h"

namespace bw::BW_ISA {

void descend(const Descent& descent, int64_t first, int64_t last, const Rounding* rounding, float* slopes,
             float* factors, uint8_t* moved, int threads);

}  // namespace bw::BW_ISA
