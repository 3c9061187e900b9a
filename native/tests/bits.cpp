// Dense streams of codes against one bit at a time.
#include "core/bits.h"

#include "tests/check.h"

namespace bw::test {

void test_bits(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    const BitStreams streams{random.number(0, 6), random.one_of<int64_t>({0, 1, 7, 8, 100, 511, 512, 513, 3000}),
                             static_cast<int>(random.number(1, 8))};
    const int threads = static_cast<int>(random.number(1, 4));
    const std::string text = std::to_string(streams.rows) + " streams of " + std::to_string(streams.codes) +
                             " codes of " + std::to_string(streams.bits) + " bits";
    Exact<uint8_t> codes(streams.rows * streams.codes), packed(streams.rows * streams.row_bytes());
    Exact<uint8_t> plain(packed.size()), back(codes.size());
    for (int64_t row = 0; row < streams.rows; ++row) {
      for (int64_t i = 0; i < streams.codes; ++i) {
        const auto code = static_cast<uint8_t>(random.number(0, (1 << streams.bits) - 1));
        codes[row * streams.codes + i] = code;
        for (int bit = 0; bit < streams.bits; ++bit) {
          const int64_t place = i * streams.bits + bit;
          plain[row * streams.row_bytes() + place / 8] |= static_cast<uint8_t>((code >> bit & 1) << place % 8);
        }
      }
    }
    kernels.pack_bits(streams, codes.data(), packed.data(), threads);
    for (int64_t i = 0; i < packed.size(); ++i) check(packed[i] == plain[i], "packed bits: " + text);
    kernels.unpack_bits(streams, packed.data(), back.data(), threads);
    for (int64_t i = 0; i < codes.size(); ++i) check(back[i] == codes[i], "unpacked bits: " + text);
  }
}

}  // namespace bw::test
