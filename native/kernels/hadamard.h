// Hadamard transforms; see core/table.h for what each function does.
#pragma once

#include "core/hadamard.h"

namespace bw::BW_ISA {

void hadamard(const Hadamard& transform, const void* x, void* y, int threads);

}  // namespace bw::BW_ISA
