// Bit streams; see core/table.h for what each function does.
#pragma once

#include "core/bits.h"

namespace bw::BW_ISA {

void pack_bits(const BitStreams& streams, const uint8_t* codes, uint8_t* packed, int threads);
void unpack_bits(const BitStreams& streams, const uint8_t* packed, uint8_t* codes, int threads);

}  // namespace bw::BW_ISA
