// The codes of trellis-coded blocks by Viterbi's algorithm.
//
// A state s = h K + q with K = 2^(L - k) drops its h with the next code, so of all states with one q only the cheapest
// survives. What is kept from column to column is therefore worth[q], the least cost of a path that ends in any state
// with that q; the cost of a state never reaches memory:
//   cost[s]  = worth[s >> k] + a (x - value[s]) (x - value[s])      difference, times a, then fused with worth
//   worth[q] = the least of cost[q + h K] over h, of equal ones that of the smallest h
// The choices h are kept as masks of 16 lanes, k of them for 16 neighbouring q.
#include <cstring>
#include <limits>

#include "core/pool.h"
#include "core/scratch.h"
#include "core/table.h"
#include "kernels/planes.h"
#include "kernels/trellis.h"
#include "simd/words.h"

namespace bw::BW_ISA {
namespace {

// The least of cost(first), ..., cost(first + 2^depth - 1) in every lane; the bits of its place go to masks.
template <int depth, int first, class Cost>
inline F32x16 least(const Cost& cost, LaneMask* masks) {
  if constexpr (depth == 0) {
    return cost(std::integral_constant<int, first>{});
  } else {
    LaneMask lower[4], upper[4];
    const F32x16 a = least<depth - 1, first>(cost, lower);
    const F32x16 b = least<depth - 1, first + (1 << (depth - 1))>(cost, upper);
    const LaneMask top = less_lanes(b, a);
    unroll<depth - 1>(
        [&](auto j) { masks[j] = static_cast<LaneMask>((upper[j] & top) | (lower[j] & static_cast<LaneMask>(~top))); });
    masks[depth - 1] = top;
    return min(b, a);
  }
}

// One column: `after` from `before`, both [K].
template <int k, bool weighted>
void advance(const TrellisSearch& search, float target, float importance, const float* before, float* after,
             uint16_t* choices) {
  const int64_t kept = search.kept(), apart = kept >> k;
  const F32x16 x = splat(target), a = splat(importance);
  const float* values = search.values;
  for (int64_t q = 0; q < kept; q += 16, choices += k) {
    const auto cost = [&](auto h) {
      const F32x16 miss = sub(x, load(values + q + h * kept));
      const F32x16 weight = weighted ? mul(a, miss) : miss;
      return fma(weight, miss, repeat_lanes<k>(before + (q >> k) + h * apart));
    };
    LaneMask masks[4];
    store(after + q, least<k, 0>(cost, masks));
    unroll<k>([&](auto j) { choices[j] = static_cast<uint16_t>(masks[j]); });
  }
}

// One block and its memory.
template <int k>
class Block {
 public:
  Block(const TrellisSearch& search, const float* x, const float* importance, float* worth, uint16_t* choices)
      : search_(search),
        x_(x),
        importance_(importance),
        before_(worth),
        after_(worth + search.kept()),
        choices_(choices) {}

  void solve(uint8_t* codes) {
    const int64_t seam = find_seam();
    constexpr float infinity = std::numeric_limits<float>::infinity();
    for (int64_t q = 0; q < search_.kept(); ++q) before_[q] = infinity;
    before_[seam] = 0;
    for (int64_t t = 0; t < search_.span; ++t) take(t, t);
    int64_t q = seam;
    for (int64_t t = search_.span; t-- > 0;) {
      const int64_t state = state_of(q, t);
      codes[t] = static_cast<uint8_t>(state & ((1 << k) - 1));
      q = state >> k;
    }
  }

 private:
  // Column t; its choices are kept at a place of their own.
  void take(int64_t t, int64_t place) {
    uint16_t* choices = choices_ + place * search_.choice_words();
    if (importance_) {
      advance<k, true>(search_, x_[t], importance_[t], before_, after_, choices);
    } else {
      advance<k, false>(search_, x_[t], 1, before_, after_, choices);
    }
    float* spare = before_;
    before_ = after_;
    after_ = spare;
  }

  // The state of the column at a place, of the path that goes on with q.
  int64_t state_of(int64_t q, int64_t place) const {
    const uint16_t* masks = choices_ + place * search_.choice_words() + q / 16 * k;
    int64_t h = 0;
    for (int j = 0; j < k; ++j) h |= int64_t{masks[j] >> (q % 16) & 1} << j;
    return q + h * search_.kept();
  }

  // The bits that the last columns of the block hand to the first: those of the best path, begun and ended anywhere,
  // through the block's end and beginning.
  int64_t find_seam() {
    const int64_t around = search_.around, span = search_.span;
    for (int64_t q = 0; q < search_.kept(); ++q) before_[q] = 0;
    // Choices before the seam are not followed back, so their place is written again.
    for (int64_t i = 0; i < 2 * around; ++i) take((span - around + i) % span, i < around ? 0 : i - around);
    int64_t q = 0;
    for (int64_t other = 1; other < search_.kept(); ++other)
      if (before_[other] < before_[q]) q = other;
    for (int64_t place = around; place-- > 0;) q = state_of(q, place) >> k;
    return q;
  }

  const TrellisSearch& search_;
  const float* x_;
  const float* importance_;
  float* before_;
  float* after_;
  uint16_t* choices_;
};

template <int k>
void run(const TrellisSearch& search, uint8_t* codes, int threads) {
  const int64_t blocks = search.columns / search.span;
  parallel_for(threads, search.rows * blocks, [&](int64_t block, int) {
    thread_local Scratch<float> worths;
    thread_local Scratch<uint16_t> words;
    float* worth = worths.get(static_cast<size_t>(2 * search.kept()));
    uint16_t* choices = words.get(static_cast<size_t>(search.span * search.choice_words()));
    const int64_t start = block * search.span, column = block % blocks * search.span;
    const float* importance = search.importance ? search.importance + column : nullptr;
    Block<k>(search, search.x + start, importance, worth, choices).solve(codes + start);
  });
}

}  // namespace

void trellis_search(const TrellisSearch& search, uint8_t* codes, int threads) {
  switch (search.bits) {
    case 1: return run<1>(search, codes, threads);
    case 2: return run<2>(search, codes, threads);
    case 3: return run<3>(search, codes, threads);
    default: return run<4>(search, codes, threads);
  }
}

}  // namespace bw::BW_ISA
