// Learned tables of levels; see core/table.h for what each function does.
#pragma once

#include "core/kmeans.h"

namespace bw::BW_ISA {

void kmeans(const Lines& lines, float* centres, int threads);

}  // namespace bw::BW_ISA
