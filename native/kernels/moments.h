// Second moments of tokens; see core/table.h.
#pragma once

#include "core/moments.h"

namespace bw::BW_ISA {

void add_moments(const Moments& moments, float* packed, int threads);

}  // namespace bw::BW_ISA
