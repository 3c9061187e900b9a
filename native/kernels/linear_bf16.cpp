// Products of any codes of at most 8 bits with bf16 activations: levels come out of a table of bf16 in registers, two
// inputs at a time go into the dot product of bf16 pairs. Only where the processor has that instruction.
#include "simd/simd.h"

#if BW_IS == BW_IS_avx512

#include <cstring>
#include <type_traits>

#include "core/pool.h"
#include "core/shares.h"
#include "core/scratch.h"
#include "kernels/ahead.h"
#include "kernels/load.h"
#include "kernels/planes.h"
#include "kernels/tile.h"
#include "kernels/variants.h"

namespace bw::BW_ISA {
namespace {

constexpr int kDeepest = 256;
constexpr int64_t kRowsOfChunk = 4;

// A table of 16 or 32 levels, indexed by the low bits of 16-bit words.
struct ShortTable {
  __m512i words;
  explicit ShortTable(const HalfTable& table, int bits) {
    alignas(64) uint16_t levels[32];
    for (int i = 0; i < 32; ++i) levels[i] = table.levels[i & ((1 << bits) - 1)];
    words = _mm512_load_si512(levels);
  }
  // Levels of the codes in bytes 0 and 2 of every lane, and in bytes 1 and 3.
  __m512i even(__m512i codes) const { return _mm512_permutexvar_epi16(codes, words); }
  __m512i odd(__m512i codes) const { return _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), words); }
};

// A table of up to 256 levels: their low and high bytes in four registers each.
struct LongTable {
  __m512i low[4], high[4];
  explicit LongTable(const HalfTable& table, int bits) {
    alignas(64) uint8_t lows[256], highs[256];
    for (int i = 0; i < 256; ++i) {
      const uint16_t level = table.levels[i & ((1 << bits) - 1)];
      lows[i] = static_cast<uint8_t>(level);
      highs[i] = static_cast<uint8_t>(level >> 8);
    }
    for (int i = 0; i < 4; ++i) {
      low[i] = _mm512_load_si512(lows + 64 * i);
      high[i] = _mm512_load_si512(highs + 64 * i);
    }
  }
  static __m512i level(const __m512i (&table)[4], __m512i codes, __mmask64 upper) {
    const __m512i first = _mm512_permutex2var_epi8(table[0], codes, table[1]);
    return _mm512_mask_mov_epi8(first, upper, _mm512_permutex2var_epi8(table[2], codes, table[3]));
  }
};

// A table of 64 levels: their low and high bytes in a register each.
struct MiddleTable {
  __m512i low, high;
  explicit MiddleTable(const HalfTable& table, int) {
    alignas(64) uint8_t lows[64], highs[64];
    for (int i = 0; i < 64; ++i) {
      lows[i] = static_cast<uint8_t>(table.levels[i]);
      highs[i] = static_cast<uint8_t>(table.levels[i] >> 8);
    }
    low = _mm512_load_si512(lows);
    high = _mm512_load_si512(highs);
  }
};

// Levels of a vector of codes: pairs of inputs (0, 2) and (1, 3) of every row.
struct Pairs {
  __m512i even, odd;
};

inline Pairs pairs_of(const ShortTable& table, __m512i codes) { return {table.even(codes), table.odd(codes)}; }
inline Pairs pairs_of_bytes(__m512i low, __m512i high) {
  constexpr __mmask64 odd_bytes = 0xaaaaaaaaaaaaaaaaull;
  return {_mm512_mask_mov_epi8(low, odd_bytes, _mm512_slli_epi16(high, 8)),
          _mm512_mask_mov_epi8(_mm512_srli_epi16(low, 8), odd_bytes, high)};
}
inline Pairs pairs_of(const MiddleTable& table, __m512i codes) {
  return pairs_of_bytes(_mm512_permutexvar_epi8(codes, table.low), _mm512_permutexvar_epi8(codes, table.high));
}
inline Pairs pairs_of(const LongTable& table, __m512i codes) {
  const __mmask64 upper = _mm512_movepi8_mask(codes);
  return pairs_of_bytes(LongTable::level(table.low, codes, upper), LongTable::level(table.high, codes, upper));
}

inline __m512 dot_pair(__m512 sum, __m512i w, const uint16_t* x) {
  int32_t two;
  std::memcpy(&two, x, 4);
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(_mm512_set1_epi32(two)));
}

inline F32x16 scaled(const Weight& weight, const TileScales& scales, int64_t group, F32x16 products, float sum) {
  return weight.levels == Levels::affine ? fma(scales.minus_zero(group), splat(sum), products) : products;
}

// Up to four rows, 4 bits: nothing is stored in between.
template <int rows, bool far>
void few_rows(const Weight& weight, const HalfTable& levels, const HalfRows& x, const Output& y, int64_t first,
              int64_t tile) {
  const ShortTable table(levels, weight.bits);
  const TileScales scales(weight, tile);
  const uint8_t* w = weight.codes + tile * weight.tile_bytes();
  F32x16 sums[rows];
  unroll<rows>([&](auto r) { sums[r] = zero_f32(); });
  for (int64_t b = 0; b < weight.blocks; ++b) {
    const int64_t place = b * x.rows + first, group = b / weight.blocks_per_scale;
    const uint16_t* values = x.values + place * weight.block;
    __m512 acc[rows][4];
    for (auto& row : acc)
      for (__m512& chain : row) chain = _mm512_setzero_ps();
    for (int v = 0; v < weight.block / 8; ++v, w += kVector) {
      const __m512i packed = _mm512_loadu_si512(w);
      ahead<far>(w);
      // The low 4 bits of a word count; the table repeats itself behind the fifth.
      const __m512i level[4] = {_mm512_permutexvar_epi16(packed, table.words),
                                _mm512_permutexvar_epi16(_mm512_srli_epi16(packed, 8), table.words),
                                _mm512_permutexvar_epi16(_mm512_srli_epi16(packed, 4), table.words),
                                _mm512_permutexvar_epi16(_mm512_srli_epi16(packed, 12), table.words)};
      unroll<4>([&](auto i) {
        unroll<rows>(
            [&](auto r) { acc[r][i] = dot_pair(acc[r][i], level[i], values + r * weight.block + 8 * v + 2 * i); });
      });
    }
    const F32x16 scale = scales.scale(group);
    unroll<rows>([&](auto r) {
      const F32x16 sum{_mm512_add_ps(_mm512_add_ps(acc[r][0], acc[r][1]), _mm512_add_ps(acc[r][2], acc[r][3]))};
      sums[r] = fma(scale, scaled(weight, scales, group, sum, x.sums[place + r]), sums[r]);
    });
  }
  unroll<rows>([&](auto r) { write(y, weight.out, first + r, tile, sums[r]); });
}

template <int rows>
inline void block_rows(const Weight& weight, const __m512i* pairs, const HalfRows& x, const TileScales& scales,
                       int64_t b, int64_t row, float* sums) {
  constexpr int sets = rows == 1 ? 4 : rows == 2 ? 2 : 1;
  const int64_t place = b * x.rows + row, group = b / weight.blocks_per_scale;
  const uint16_t* values = x.values + place * weight.block;
  __m512 acc[rows][sets];
  for (auto& one : acc)
    for (__m512& chain : one) chain = _mm512_setzero_ps();
  for (int p = 0; p < weight.block / 2; p += 4) {
    unroll<4>([&](auto i) {
      unroll<rows>([&](auto r) {
        acc[r][i % sets] = dot_pair(acc[r][i % sets], pairs[p + i], values + r * weight.block + 2 * (p + i));
      });
    });
  }
  const F32x16 scale = scales.scale(group);
  unroll<rows>([&](auto r) {
    F32x16 sum{acc[r][0]};
    unroll<sets - 1>([&](auto s) { sum = add(sum, F32x16{acc[r][s + 1]}); });
    float* at = sums + r * kRows;
    store(at, fma(scale, scaled(weight, scales, group, sum, x.sums[place + r]), load(at)));
  });
}

template <int bits>
void many_rows(const Weight& weight, const HalfTable& levels, const HalfRows& x, const Output& y, int64_t tile) {
  alignas(64) uint8_t bytes[kRows * kDeepest];
  alignas(64) __m512i pairs[kDeepest / 2];
  thread_local Scratch<float> scratch;
  float* sums = scratch.get(static_cast<size_t>(x.rows) * kRows);
  std::memset(sums, 0, sizeof(float) * static_cast<size_t>(x.rows) * kRows);
  const std::conditional_t<(bits <= 5), ShortTable, std::conditional_t<(bits == 6), MiddleTable, LongTable>> table(
      levels, bits);
  const TileScales scales(weight, tile);
  for (int64_t b = 0; b < weight.blocks; ++b) {
    const uint8_t* w = weight.codes + tile * weight.tile_bytes() + b * weight.block_bytes();
    if (bits < 8) unpack_block<bits>(w, weight.block, bytes);
    const uint8_t* codes = bits < 8 ? bytes : w;
    for (int q = 0; q < weight.block / 4; ++q) {
      const Pairs two = pairs_of(table, _mm512_loadu_si512(codes + q * kVector));
      pairs[2 * q] = two.even;
      pairs[2 * q + 1] = two.odd;
    }
    int64_t r = 0;
    for (; r + 8 <= x.rows; r += 8) block_rows<8>(weight, pairs, x, scales, b, r, sums + r * kRows);
    if (x.rows - r >= 4) block_rows<4>(weight, pairs, x, scales, b, r, sums + r * kRows), r += 4;
    if (x.rows - r >= 2) block_rows<2>(weight, pairs, x, scales, b, r, sums + r * kRows), r += 2;
    if (x.rows - r >= 1) block_rows<1>(weight, pairs, x, scales, b, r, sums + r * kRows);
  }
  for (int64_t row = 0; row < x.rows; ++row) write(y, weight.out, row, tile, load(sums + row * kRows));
}

}  // namespace

void gather_halves(const void* x, Float type, int64_t rows, int64_t in, int block, uint16_t* values, float* sums,
                   int threads) {
  const int64_t blocks = (in + block - 1) / block;
  const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  parallel_for(rows > kRowsOfChunk ? threads : 1, (rows + kRowsOfChunk - 1) / kRowsOfChunk, [&](int64_t chunk, int) {
    alignas(64) float piece[16];
    const int64_t stop = rows < (chunk + 1) * kRowsOfChunk ? rows : (chunk + 1) * kRowsOfChunk;
    for (int64_t row = chunk * kRowsOfChunk; row < stop; ++row) {
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t place = b * rows + row;
        F32x16 total = zero_f32();
        for (int k = 0; k < block; k += 16) {
          const int64_t at = b * block + k, left = in - at, count = left < 0 ? 0 : left < 16 ? left : 16;
          load_padded(x, type, row * in + at, count, 16, piece);
          uint16_t* target = values + place * block + k;
          store_bf16(target, {_mm512_permutexvar_ps(order, _mm512_load_ps(piece))});
          // Zero points go with what the products see.
          total = add(total, load_bf16(target));
        }
        sums[place] = sum(total);
      }
    }
  });
}

void linear_bf16(const Weight& weight, const HalfTable& table, const HalfRows& x, const Output& y, int threads) {
  const int64_t tiles = weight.tiles();
  if (weight.bits == 4 && x.rows <= 4) {
    const Shares shares(tiles, 4, threads);
    return with_ahead([&](auto far) {
      parallel_for(threads, shares.chunks(), [&](int64_t chunk, int) {
        for (int64_t tile = shares.first(chunk); tile < shares.last(chunk); ++tile) {
          if (x.rows == 4) few_rows<4, far>(weight, table, x, y, 0, tile);
          if (x.rows == 2 || x.rows == 3) few_rows<2, far>(weight, table, x, y, 0, tile);
          if (x.rows == 1 || x.rows == 3) few_rows<1, far>(weight, table, x, y, x.rows - 1, tile);
        }
      });
    });
  }
  with_bits(weight.bits, [&](auto bits) {
    parallel_for(threads, tiles, [&](int64_t tile, int) { many_rows<bits>(weight, table, x, y, tile); });
  });
}

}  // namespace bw::BW_ISA

#endif
