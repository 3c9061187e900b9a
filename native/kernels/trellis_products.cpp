// Products with trellis-coded weights. Every column is decoded from the bits before it, 16 rows at a time; a 1MAD
// weight times an 8-bit activation is one dot product of the four bytes with the activation four times, exact in
// integers.
#include <cstring>

#include "core/pool.h"
#include "core/table.h"
#include "kernels/panel.h"
#include "kernels/trellis.h"
#include "kernels/trellis_states.h"

namespace bw::BW_ISA {
namespace {

constexpr int kFew = 8;  // rows of activations that are multiplied while the weights are decoded

// Whether the 32 columns of a run are code one by one: only where a vector is one instruction, or compilers take
// minutes.
constexpr bool kUnrolled = BW_IS == BW_IS_avx512;

// Calls body(column, i, state) for every column of a block; i = column % 4 at least, as a constant.
template <int k, class Body>
inline void each_column(const TrellisWeight& weight, int64_t tile, int64_t b, Body&& body) {
  const uint32_t* words = weight.codes + (tile * weight.blocks() + b) * weight.block_words();
  const I32x16 mask = splat_i32((1 << weight.state_bits) - 1);
  const int runs = weight.span / kTrellisRun;
  I32x16 before = load_word_lanes(words + weight.block_words() - kRows);
  for (int run = 0; run < runs; ++run, words += k * kRows) {
    if constexpr (kUnrolled) {
      each_state<k>(words, before, mask, [&](auto i, I32x16 state) { body(run * kTrellisRun + i, i, state); });
    } else {
      I32x16 states[kTrellisRun];
      each_state<k>(words, before, mask, [&](auto i, I32x16 state) { states[i] = state; });
      for (int four = 0; four < kTrellisRun; four += 4)
        unroll<4>([&](auto i) { body(run * kTrellisRun + four + i, i, states[four + i]); });
    }
    before = load_word_lanes(words + (k - 1) * kRows);
  }
}

Weight as_weight(const TrellisWeight& trellis) {
  Weight weight;
  weight.out = trellis.out;
  weight.in = trellis.in;
  weight.groups = trellis.groups;
  weight.scale = trellis.scale;
  weight.scale_type = trellis.scale_type;
  return weight;
}

// Sums of a tile, [rows][16], for all rows of activations; zero at first.
float* begin_sums(int64_t rows) {
  thread_local Scratch<float> scratch;
  float* sums = scratch.get(static_cast<size_t>(rows) * kRows);
  std::memset(sums, 0, sizeof(float) * static_cast<size_t>(rows) * kRows);
  return sums;
}

// sums += scale * (products + offset * sum of the activations)
inline void add_block(float* sums, F32x16 scale, F32x16 products, float offset, float x_sum) {
  store(sums, fma(scale, fma(splat(offset), splat(x_sum), products), load(sums)));
}

template <int k, class Code, int rows>
void few_floats(const TrellisWeight& weight, const FloatRows& x, int64_t tile, int64_t b, int64_t first, F32x16 scale,
                float* sums) {
  constexpr int sets = rows == 1 ? 4 : rows == 2 ? 2 : 1;  // chains of sums that do not wait for each other
  const int64_t place = b * x.rows + first;
  const float* values = x.values + place * x.block;
  F32x16 here[rows][sets];
  unroll<rows>([&](auto r) { unroll<sets>([&](auto s) { here[r][s] = zero_f32(); }); });
  each_column<k>(weight, tile, b, [&](int column, auto i, I32x16 state) {
    const F32x16 n = Code::number(state);
    unroll<rows>([&](auto r) {
      F32x16& sum = here[r][i % sets];
      sum = fma(n, splat(values[r * x.block + column]), sum);
    });
  });
  unroll<rows>([&](auto r) {
    F32x16 total = here[r][0];
    unroll<sets - 1>([&](auto s) { total = add(total, here[r][s + 1]); });
    add_block(sums + (first + r) * kRows, scale, total, weight.offset, x.sums[place + r]);
  });
}

// Rows of activations times a decoded block, numbers[span][16].
template <int rows>
void decoded_floats(const TrellisWeight& weight, const FloatRows& x, const float* numbers, int64_t b, int64_t first,
                    F32x16 scale, float* sums) {
  const int64_t place = b * x.rows + first;
  const float* values = x.values + place * x.block;
  F32x16 here[rows];
  unroll<rows>([&](auto r) { here[r] = zero_f32(); });
  for (int column = 0; column < weight.span; ++column) {
    const F32x16 n = load(numbers + column * kRows);
    unroll<rows>([&](auto r) { here[r] = fma(n, splat(values[r * x.block + column]), here[r]); });
  }
  unroll<rows>(
      [&](auto r) { add_block(sums + (first + r) * kRows, scale, here[r], weight.offset, x.sums[place + r]); });
}

template <int k, class Code>
void float_block(const TrellisWeight& weight, const FloatRows& x, int64_t tile, int64_t b, F32x16 scale, float* sums) {
  int64_t row = 0;
  if (!kLean && x.rows <= kFew) {
    if (x.rows - row >= 8) few_floats<k, Code, 8>(weight, x, tile, b, row, scale, sums), row += 8;
    if (x.rows - row >= 4) few_floats<k, Code, 4>(weight, x, tile, b, row, scale, sums), row += 4;
    if (x.rows - row >= 2) few_floats<k, Code, 2>(weight, x, tile, b, row, scale, sums), row += 2;
    if (x.rows - row >= 1) few_floats<k, Code, 1>(weight, x, tile, b, row, scale, sums);
    return;
  }
  alignas(64) float numbers[kTrellisMostSpan * kRows];
  each_column<k>(weight, tile, b,
                 [&](int column, auto, I32x16 state) { store(numbers + column * kRows, Code::number(state)); });
  if constexpr (!kLean) {
    for (; row + 8 <= x.rows; row += 8) decoded_floats<8>(weight, x, numbers, b, row, scale, sums);
  }
  for (; row < x.rows; ++row) decoded_floats<1>(weight, x, numbers, b, row, scale, sums);
}

template <int k, class Code>
void float_tile(const TrellisWeight& weight, const FloatRows& x, const Output& y, int64_t tile) {
  const Weight plain = as_weight(weight);
  const TileScales scales(plain, tile);
  float* sums = begin_sums(x.rows);
  for (int64_t b = 0; b < weight.blocks(); ++b)
    float_block<k, Code>(weight, x, tile, b, scales.scale(b / weight.blocks_per_scale), sums);
  for (int64_t row = 0; row < x.rows; ++row) write(y, weight.out, row, tile, load(sums + row * kRows));
}

// Products in integers of a block: sums of bytes times activations, minus 510 times the sum of the activations.
inline void add_integers(float* sums, const TrellisWeight& weight, const QuantizedRows& x, int64_t place, F32x16 scale,
                         I32x16 total) {
  const F32x16 centred = to_f32(sub(total, splat_i32(510 * x.sums[place])));
  add_block(sums, mul(scale, splat(x.scale[place])), centred, weight.offset, static_cast<float>(x.sums[place]));
}

// fours: activations four times each, [blocks][rows][span][4].
template <int k, int rows>
void few_integers(const TrellisWeight& weight, const QuantizedRows& x, const int8_t* fours, int64_t tile, int64_t b,
                  int64_t first, F32x16 scale, float* sums) {
  constexpr int sets = rows == 1 ? 4 : rows == 2 ? 2 : 1;
  const int64_t place = b * x.rows + first, stride = int64_t{4} * x.block;
  const int8_t* codes = fours + place * stride;
  I32x16 here[rows][sets];
  unroll<rows>([&](auto r) { unroll<sets>([&](auto s) { here[r][s] = zero_i32(); }); });
  each_column<k>(weight, tile, b, [&](int column, auto i, I32x16 state) {
    const U8x64 bytes = as_bytes(OneMad::word(state));
    unroll<rows>([&](auto r) {
      I32x16& sum = here[r][i % sets];
      sum = dot<255>(sum, bytes, codes + r * stride + 4 * column);
    });
  });
  unroll<rows>([&](auto r) {
    I32x16 total = here[r][0];
    unroll<sets - 1>([&](auto s) { total = add(total, here[r][s + 1]); });
    add_integers(sums + (first + r) * kRows, weight, x, place + r, scale, total);
  });
}

template <int k>
void few_rows(const TrellisWeight& weight, const QuantizedRows& x, const int8_t* fours, int64_t tile, int64_t b,
              F32x16 scale, float* sums) {
  int64_t row = 0;
  if constexpr (!kLean) {
    if (x.rows - row >= 8) few_integers<k, 8>(weight, x, fours, tile, b, row, scale, sums), row += 8;
    if (x.rows - row >= 4) few_integers<k, 4>(weight, x, fours, tile, b, row, scale, sums), row += 4;
    if (x.rows - row >= 2) few_integers<k, 2>(weight, x, fours, tile, b, row, scale, sums), row += 2;
  }
  for (; row < x.rows; ++row) few_integers<k, 1>(weight, x, fours, tile, b, row, scale, sums);
}

// A block as sums of bytes in two parts of 7 bits, each [span / 4][64].
template <int k>
void decode_bytes(const TrellisWeight& weight, int64_t tile, int64_t b, uint8_t* low, uint8_t* high) {
  const I32x16 seven = splat_i32(127);
  I32x16 lower = zero_i32(), upper = zero_i32();
  each_column<k>(weight, tile, b, [&](int column, auto i, I32x16 state) {
    constexpr int byte = i % 4;
    const I32x16 sum = OneMad::sum(OneMad::word(state));
    // The fields do not meet: an addition joins them.
    const I32x16 first = shift_left<8 * byte>(bits_and(sum, seven));
    const I32x16 second = shift_left<8 * byte>(shift_down<7>(sum));
    lower = byte == 0 ? first : add(lower, first);
    upper = byte == 0 ? second : add(upper, second);
    if constexpr (byte == 3) {
      store_bytes(low + column / 4 * kVector, as_bytes(lower));
      store_bytes(high + column / 4 * kVector, as_bytes(upper));
    }
  });
}

template <int k>
void int8_tile(const TrellisWeight& weight, const QuantizedRows& x, const int8_t* fours, const Output& y,
               int64_t tile) {
  const Weight plain = as_weight(weight);
  const TileScales scales(plain, tile);
  float* sums = begin_sums(x.rows);
  alignas(64) uint8_t low[kRows * kTrellisMostSpan], high[kRows * kTrellisMostSpan];
  for (int64_t b = 0; b < weight.blocks(); ++b) {
    const F32x16 scale = scales.scale(b / weight.blocks_per_scale);
    if (fours) {
      few_rows<k>(weight, x, fours, tile, b, scale, sums);
      continue;
    }
    decode_bytes<k>(weight, tile, b, low, high);
    const int64_t place = b * x.rows;
    panel<true, 127>(
        {low, high, weight.span / 4}, x.codes + place * x.block, x.block, x.rows,
        [&](int64_t row, I32x16 total) { add_integers(sums + row * kRows, weight, x, place + row, scale, total); });
  }
  for (int64_t row = 0; row < x.rows; ++row) write(y, weight.out, row, tile, load(sums + row * kRows));
}

// Calls body(integral_constant<int, k>).
template <class Body>
inline void with_shift(int bits, Body&& body) {
  switch (bits) {
    case 1: return body(std::integral_constant<int, 1>{});
    case 2: return body(std::integral_constant<int, 2>{});
    case 3: return body(std::integral_constant<int, 3>{});
    default: return body(std::integral_constant<int, 4>{});
  }
}

void pack_run(const uint8_t* codes, int bits, uint32_t* target) {
  uint64_t string = 0;
  int held = 0;
  for (int i = 0; i < kTrellisRun; ++i) {
    string = string << bits | (codes[i] & ((1u << bits) - 1));
    held += bits;
    if (held < 32) continue;
    held -= 32;
    *target = static_cast<uint32_t>(string >> held);
    target += kRows;
  }
}

}  // namespace

void trellis_pack(const TrellisWeight& weight, const uint8_t* codes, uint32_t* packed, int threads) {
  const int64_t runs = weight.in / kTrellisRun, run_words = int64_t{weight.bits} * kRows;
  parallel_for(threads, weight.tiles(), [&](int64_t tile, int) {
    uint32_t* target = packed + tile * runs * run_words;
    std::memset(target, 0, sizeof(uint32_t) * static_cast<size_t>(runs * run_words));
    for (int64_t r = 0; r < kRows && tile * kRows + r < weight.out; ++r)
      for (int64_t run = 0; run < runs; ++run)
        pack_run(codes + (tile * kRows + r) * weight.in + run * kTrellisRun, weight.bits, target + run * run_words + r);
  });
}

void trellis_float(const TrellisWeight& weight, const FloatRows& x, const Output& y, int threads) {
  if (x.rows == 0) return;
  with_shift(weight.bits, [&](auto k) {
    parallel_for(threads, weight.tiles(), [&](int64_t tile, int) {
      if (weight.code == TrellisCode::one_mad) {
        float_tile<k, OneMad>(weight, x, y, tile);
      } else {
        float_tile<k, ThreeInst>(weight, x, y, tile);
      }
    });
  });
}

void trellis_int8(const TrellisWeight& weight, const QuantizedRows& x, const Output& y, int threads) {
  if (x.rows == 0) return;
  thread_local Scratch<int8_t> scratch;
  int8_t* fours = nullptr;
  if (x.rows <= kFew) {
    const int64_t count = x.blocks * x.rows * x.block;
    fours = scratch.get(static_cast<size_t>(4 * count));
    for (int64_t i = 0; i < count; ++i) std::memset(fours + 4 * i, x.codes[i], 4);
  }
  with_shift(weight.bits, [&](auto k) {
    parallel_for(threads, weight.tiles(), [&](int64_t tile, int) { int8_tile<k>(weight, x, fours, y, tile); });
  });
}

}  // namespace bw::BW_ISA
