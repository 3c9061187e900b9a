// Byte tables with what they were checked against: those of every row serve no other weight.
#pragma once

#include "bindings/checks.h"
#include "core/variants.h"

namespace bw {

struct CheckedTables {
  ByteTables tables;
  int64_t tiles = 0;
  int64_t groups = 0;

  void require_for(const Weight& weight) const {
    require(weight.bits >= 2 && weight.bits <= 4, "byte tables serve codes of 2 to 4 bits");
    require(!tables.by_row || (tiles == weight.tiles() && groups == weight.groups),
            "the byte tables belong to another weight");
  }
};

}  // namespace bw
