#include "kernels/probe.h"

#include <cstring>

#include "core/pool.h"
#include "kernels/planes.h"

namespace bw::BW_ISA {
namespace {

constexpr int64_t kSpan = 1 << 19;  // bytes that one piece of work reads
constexpr int64_t kAhead = 4096;    // what is asked for this many bytes ahead
constexpr int kChains = 12;         // sums that do not wait for each other
constexpr int64_t kTurns = 4096;    // rounds of one piece of work

}  // namespace

// Every byte once, as the products read weights: whole vectors, in runs.
int32_t read_all(const uint8_t* data, int64_t bytes, int threads) {
  const int64_t spans = bytes / kSpan;
  int32_t seen = 0;
  parallel_for(threads, spans, [&](int64_t span, int) {
    const uint8_t* at = data + span * kSpan;
    U8x64 all[4] = {splat_byte(0), splat_byte(0), splat_byte(0), splat_byte(0)};
    for (int64_t i = 0; i < kSpan; i += 256) {
      unroll<4>([&](auto j) {
        prefetch(at + i + 64 * j + kAhead);
        all[j] = bits_or(all[j], load_bytes(at + i + 64 * j));
      });
    }
    alignas(64) uint8_t bytes_of[64];
    store_bytes(bytes_of, bits_or(bits_or(all[0], all[1]), bits_or(all[2], all[3])));
    // Something has to follow from what was read, or it is not read.
    if (bytes_of[0] == 1 && bytes_of[63] == 2) __atomic_fetch_add(&seen, 1, __ATOMIC_RELAXED);
  });
  return seen;
}

// turns * 4096 * 12 dot products of 64 bytes each.
int32_t multiply_bytes(int64_t turns, int threads) {
  int32_t seen = 0;
  parallel_for(threads, turns, [&](int64_t turn, int) {
    alignas(64) int8_t x[64];
    std::memset(x, static_cast<int>(turn & 3), sizeof(x));
    I32x16 sums[kChains];
    for (auto& sum_of : sums) sum_of = zero_i32();
    U8x64 w = splat_byte(static_cast<uint8_t>(turn));
    for (int64_t i = 0; i < kTurns; ++i) unroll<kChains>([&](auto c) { sums[c] = dot<255>(sums[c], w, x + 4 * c); });
    I32x16 all = zero_i32();
    for (auto& sum_of : sums) all = add(all, sum_of);
    if (sum(all) == 1) __atomic_fetch_add(&seen, 1, __ATOMIC_RELAXED);
  });
  return seen;
}

}  // namespace bw::BW_ISA
