// Second-order rounding column by column; see core/table.h for what each function does.
#pragma once

#include "core/sweep.h"

namespace bw::BW_ISA {

void sweep_load(const Sweep& sweep, const float* w, int threads);
void sweep_values(const Sweep& sweep, float* values, int threads);
void sweep_begin(const Sweep& sweep, const Columns& x, int threads);
void sweep_feed(const Sweep& sweep, const Columns& x, int64_t from, int64_t to, int64_t first, int64_t last,
                float* factors, int threads);
void sweep_round(const Sweep& sweep, const Columns& x, int64_t first, int64_t last, const Rounding& rounding,
                 uint8_t* codes, float* factors, int threads);
void sweep_look(const Sweep& sweep, const Columns& x, int64_t first, int64_t last, float* current, int64_t stride,
                float* factors, int threads);

}  // namespace bw::BW_ISA
