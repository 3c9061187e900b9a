// What the machine can do at most: reading memory, multiplying bytes.
#pragma once

#include <cstdint>

namespace bw::BW_ISA {

int32_t read_all(const uint8_t* data, int64_t bytes, int threads);
int32_t multiply_bytes(int64_t turns, int threads);

}  // namespace bw::BW_ISA
