// Ranges of groups, and rounding to the nearest level; see core/table.h for what each function does.
#pragma once

#include "core/nearest.h"

namespace bw::BW_ISA {

void group_limits(const Groups& groups, const void* x, Float type, float* low, float* high, int threads);
void round_groups(const Groups& groups, const Nearest& nearest, const void* x, Float type, uint8_t* codes, void* values,
                  int threads);

}  // namespace bw::BW_ISA
