#include "core/shares.h"

#include <algorithm>

namespace bw {

Shares::Shares(int64_t units, int64_t smallest, int threads) {
  // With chunks of at least this size there are never more than kMost.
  smallest = std::max({smallest, int64_t{1}, (units + kMost / 2 - 1) / (kMost / 2)});
  const int64_t part = int64_t{2} * threads;
  edges_[0] = 0;
  while (edges_[chunks_] < units) {
    const int64_t left = units - edges_[chunks_];
    const int64_t size = threads == 1 ? left : std::min(left, std::max(smallest, left / part));
    edges_[chunks_ + 1] = edges_[chunks_] + size;
    ++chunks_;
  }
}

}  // namespace bw
