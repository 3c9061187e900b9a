// Nearest points of vector codebooks. The definitions, bit for bit, are those of Python's formats/search.py: products
// and sums in fp32, one after the other and never fused, the first of equally good candidates.
#include <algorithm>

#include "core/pool.h"
#include "core/scratch.h"
#include "kernels/planes.h"
#include "kernels/vectors.h"
#include "simd/simd.h"

namespace bw::BW_ISA {
namespace {

constexpr float kFar = 1e30f;
constexpr int kBlock = 64;        // candidates whose best is looked for at once
constexpr int64_t kVectors = 64;  // vectors of a chunk of work
constexpr int kLines = 4;         // searches that share one pass over the codebook

// A value that is no number becomes the smallest.
inline float bounded(float value) { return std::min(std::max(-kFar, value), kFar); }

struct Candidate {
  float gain;
  int64_t place;
};

// The best candidates so far, the best first; equal gains in the order of their places.
struct Best {
  Candidate* kept;
  int64_t width;
  int64_t count = 0;

  float least() const { return count < width ? -__builtin_inff() : kept[count - 1].gain; }
  void offer(float gain, int64_t place) {
    const auto after = [&](const Candidate& other) {
      return gain > other.gain || (gain == other.gain && place < other.place);
    };
    if (count == width && !after(kept[count - 1])) return;
    int64_t at = count < width ? count++ : count - 1;
    for (; at > 0 && after(kept[at - 1]); --at) kept[at] = kept[at - 1];
    kept[at] = {gain, place};
  }
};

// Offers the block's candidates where one of them may be kept; most blocks are left after one comparison.
inline void offer_block(const float* gains, float most, int64_t first, int64_t count, Best& best) {
  if (most < best.least()) return;
  for (int64_t i = 0; i < count; ++i)
    if (gains[i] >= best.least()) best.offer(gains[i], first + i);
}

// What one partial sum leaves, and where its extensions are kept.
struct Line {
  const float* rest;
  float gain;
  int64_t first;  // place of its first extension
  Best* best;
};

template <int lines>
void extend(const Books& books, int64_t book, const Line* line) {
  const float* columns = books.columns + book * books.span * books.padded;
  const float* half = books.half + book * books.padded;
  alignas(64) float gains[lines][kBlock];
  for (int64_t start = 0; start < books.entries; start += kBlock) {
    F32x16 most[lines];
    unroll<kBlock / 16>([&](auto part_) {
      constexpr int part = part_;
      const int64_t place = start + 16 * part;
      F32x16 total[lines];
      const F32x16 begin = load(columns + place);
      unroll<lines>([&](auto l) { total[l] = mul(splat(line[l].rest[0]), begin); });
      for (int64_t j = 1; j < books.span; ++j) {
        const F32x16 column = load(columns + j * books.padded + place);
        unroll<lines>([&](auto l) { total[l] = add(total[l], mul(splat(line[l].rest[j]), column)); });
      }
      const F32x16 norm = load(half + place);
      unroll<lines>([&](auto l) {
        total[l] = add(splat(line[l].gain), sub(total[l], norm));
        store(gains[l] + 16 * part, total[l]);
        most[l] = part == 0 ? total[l] : max(most[l], total[l]);
      });
    });
    const int64_t count = std::min<int64_t>(kBlock, books.entries - start);
    unroll<lines>(
        [&](auto l) { offer_block(gains[l], largest(most[l]), line[l].first + start, count, *line[l].best); });
  }
}

// The partial sums of a chunk of vectors after some codebooks.
struct Beam {
  float* rest;     // [vectors][beam][span]
  float* gain;     // [vectors][beam]
  int32_t* index;  // [vectors][beam][books]
};

void search_chunk(const Books& books, const float* x, int64_t count, int32_t* result) {
  const int64_t span = books.span, beam = books.beam, total = books.books;
  thread_local Scratch<float> floats[4];
  thread_local Scratch<int32_t> integers[2];
  thread_local Scratch<Candidate> candidates;
  const auto room = static_cast<size_t>(count * beam);
  Beam now{floats[0].get(room * span), floats[1].get(room), integers[0].get(room * total)};
  Beam next{floats[2].get(room * span), floats[3].get(room), integers[1].get(room * total)};
  Candidate* kept = candidates.get(room);
  for (int64_t v = 0; v < count; ++v) {
    for (int64_t j = 0; j < span; ++j) now.rest[v * beam * span + j] = bounded(x[v * span + j]);
    now.gain[v * beam] = 0;
  }
  int64_t width = 1;
  for (int64_t m = 0; m < total; ++m) {
    const int64_t wider = std::min(beam, width * books.entries);
    Best best[kVectors];
    Line lines[kLines];
    int filled = 0;
    const auto flush = [&] {
      if (filled == kLines) {
        extend<kLines>(books, m, lines);
      } else {
        for (int l = 0; l < filled; ++l) extend<1>(books, m, lines + l);
      }
      filled = 0;
    };
    // Where a codebook holds no numbers nothing is offered: then the first entry stays.
    for (int64_t i = 0; i < count * beam; ++i) kept[i] = {-__builtin_inff(), 0};
    for (int64_t v = 0; v < count; ++v) best[v] = {kept + v * beam, wider};
    for (int64_t v = 0; v < count; ++v)
      for (int64_t b = 0; b < width; ++b) {
        const int64_t at = v * beam + b;
        lines[filled++] = {now.rest + at * span, now.gain[at], b * books.entries, best + v};
        if (filled == kLines) flush();
      }
    flush();
    for (int64_t v = 0; v < count; ++v)
      for (int64_t b = 0; b < wider; ++b) {
        const Candidate& chosen = best[v].kept[b];
        const int64_t parent = v * beam + chosen.place / books.entries, entry = chosen.place % books.entries;
        const int64_t at = v * beam + b;
        const float* row = books.rows + (m * books.entries + entry) * span;
        for (int64_t j = 0; j < span; ++j) next.rest[at * span + j] = now.rest[parent * span + j] - row[j];
        next.gain[at] = chosen.gain;
        for (int64_t k = 0; k < m; ++k) next.index[at * total + k] = now.index[parent * total + k];
        next.index[at * total + m] = static_cast<int32_t>(entry);
      }
    const Beam kept_now = now;
    now = next;
    next = kept_now;
    width = wider;
  }
  for (int64_t v = 0; v < count; ++v)
    for (int64_t m = 0; m < total; ++m) result[v * total + m] = now.index[v * beam * total + m];
}

// One vector less one shift: the best pattern and its gain.
struct Shifted {
  float size[kSpan];
  float added;  // what the shift changes in the distance
  const float* penalty;
};

template <int lines>
void best_patterns(const BasePoints& base, const Shifted* line, Best* best) {
  alignas(64) float gains[lines][kBlock];
  for (int64_t start = 0; start < 256; start += kBlock) {
    F32x16 most[lines];
    unroll<kBlock / 16>([&](auto part_) {
      constexpr int part = part_;
      const int64_t place = start + 16 * part;
      F32x16 total[lines], smallest[lines];
      const F32x16 begin = load(base.sizes + place);
      unroll<lines>([&](auto l) { total[l] = smallest[l] = mul(splat(line[l].size[0]), begin); });
      unroll<kSpan - 1>([&](auto j_) {
        constexpr int j = j_ + 1;
        const F32x16 column = load(base.sizes + j * 256 + place);
        unroll<lines>([&](auto l) {
          const F32x16 product = mul(splat(line[l].size[j]), column);
          total[l] = add(total[l], product);
          smallest[l] = min(smallest[l], product);
        });
      });
      const F32x16 norm = load(base.half + place);
      unroll<lines>([&](auto l) {
        const F32x16 given_up = mul(load(line[l].penalty + place), smallest[l]);
        total[l] = add(sub(sub(total[l], norm), given_up), splat(line[l].added));
        store(gains[l] + 16 * part, total[l]);
        most[l] = part == 0 ? total[l] : max(most[l], total[l]);
      });
    });
    unroll<lines>([&](auto l) { offer_block(gains[l], largest(most[l]), start, kBlock, best[l]); });
  }
}

// The seven sign bits of the best signs for y on a pattern.
int sign_changes(const BasePoints& base, const float* y, int64_t pattern) {
  int change = 0, weakest = 0, count = 0;
  float least = __builtin_inff();
  for (int j = 0; j < kSpan; ++j) {
    const int differs = (y[j] < 0) != (j == kSpan - 1 && base.odd[pattern]);
    change |= differs << j;
    count += differs;
    const float product = (y[j] < 0 ? -y[j] : y[j]) * base.sizes[j * 256 + pattern];
    if (product < least) least = product, weakest = j;
  }
  if (count % 2) change ^= 1 << weakest;
  return change & 127;
}

void e8p_vector(const BasePoints& base, const float* x, int32_t* code) {
  float y[2][kSpan], total = bounded(x[0]);
  Shifted lines[2];
  for (int j = 1; j < kSpan; ++j) total = total + bounded(x[j]);
  for (int s = 0; s < 2; ++s) {
    const float shift = s == 0 ? 0.25f : -0.25f;
    int negative = 0;
    for (int j = 0; j < kSpan; ++j) {
      y[s][j] = bounded(x[j]) - shift;
      lines[s].size[j] = y[s][j] < 0 ? -y[s][j] : y[s][j];
      negative += y[s][j] < 0;
    }
    lines[s].added = shift * total;
    lines[s].penalty = base.penalty + negative % 2 * 256;
  }
  Candidate kept[2] = {{-__builtin_inff(), 0}, {-__builtin_inff(), 0}};
  Best best[2] = {{kept, 1}, {kept + 1, 1}};
  best_patterns<2>(base, lines, best);
  const int s = kept[1].gain > kept[0].gain ? 1 : 0;
  const int64_t pattern = kept[s].place;
  *code = static_cast<int32_t>(pattern | int64_t{sign_changes(base, y[s], pattern)} << 8 | int64_t{s} << 15);
}

}  // namespace

void beam_search(const Books& books, const float* x, int64_t count, int32_t* index, int threads) {
  parallel_for(threads, (count + kVectors - 1) / kVectors, [&](int64_t chunk, int) {
    const int64_t first = chunk * kVectors;
    search_chunk(books, x + first * books.span, std::min(kVectors, count - first), index + first * books.books);
  });
}

void nearest_e8p(const BasePoints& base, const float* x, int64_t count, int32_t* codes, int threads) {
  parallel_for(threads, (count + kVectors - 1) / kVectors, [&](int64_t chunk, int) {
    const int64_t stop = std::min(count, (chunk + 1) * kVectors);
    for (int64_t v = chunk * kVectors; v < stop; ++v) e8p_vector(base, x + v * kSpan, codes + v);
  });
}

}  // namespace bw::BW_ISA
