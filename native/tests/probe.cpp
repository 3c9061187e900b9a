// The probes of a machine's speed: nothing but what they may not read.
#include "tests/check.h"

namespace bw::test {

void test_probe(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < std::min(turns, 3); ++turn) {
    const int threads = static_cast<int>(random.number(1, 4));
    const Exact<uint8_t> data(random.one_of<int64_t>({0, 1, 1 << 19, (1 << 20) + 77}));
    check(kernels.read_all(data.data(), data.size(), threads) == 0, "zeros are read as zeros");
    // Sums of turn 0 are zero, those of the others are a multiple of 4096 each.
    check(kernels.multiply_bytes(2, threads) == 0, "sums of many equal products");
  }
}

}  // namespace bw::test
