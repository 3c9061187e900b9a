// Weights asked for before they are read.
#pragma once

#include <type_traits>

#include "core/memory.h"
#include "simd/simd.h"

namespace bw::BW_ISA {

// Asks for what a stream of weights reads a few kilobytes on, where the processor's own prefetches do not keep up with
// a thread that also computes; elsewhere nothing, for there such requests cost more than they bring. One request for
// every vector of 64 bytes, next to its load: in bursts they help less.
template <bool wanted>
inline void ahead(const uint8_t* w) {
  if constexpr (wanted) prefetch_second(w + 4096);
}

// Calls body(true or false as a constant): whether requests help on this processor.
template <class Body>
inline void with_ahead(Body&& body) {
  if (!kLean && prefetches_help()) return body(std::bool_constant<!kLean>{});
  body(std::false_type{});
}

}  // namespace bw::BW_ISA
