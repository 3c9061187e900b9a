// Trellis codes: the search for codes, and products with coded weights; see core/table.h for what each function does.
#pragma once

#include "core/trellis.h"

namespace bw::BW_ISA {

void trellis_search(const TrellisSearch& search, uint8_t* codes, int threads);
void trellis_pack(const TrellisWeight& weight, const uint8_t* codes, uint32_t* packed, int threads);
void trellis_float(const TrellisWeight& weight, const FloatRows& x, const Output& y, int threads);
void trellis_int8(const TrellisWeight& weight, const QuantizedRows& x, const Output& y, int threads);

}  // namespace bw::BW_ISA
