// What an instruction set offers: one table of functions for each, filled by isa/table.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/attention.h"
#include "core/bits.h"
#include "core/descent.h"
#include "core/factor.h"
#include "core/hadamard.h"
#include "core/kmeans.h"
#include "core/moments.h"
#include "core/nearest.h"
#include "core/network.h"
#include "core/sweep.h"
#include "core/trellis.h"
#include "core/variants.h"
#include "core/vectors.h"
#include "core/weight.h"
#include "core/windows.h"

namespace bw {

struct Kernels {
  const char* name;

  // -- linear: y = x W^T + bias ---------------------------------------------------------------------------------
  // Codes of one byte [out][in] into the layout of a Weight.
  void (*pack_weight)(const Weight&, const uint8_t* codes, uint8_t* packed, int threads);
  // The inverse.
  void (*unpack_weight)(const Weight&, uint8_t* codes, int threads);
  // Rows x[rows][in] to 8-bit codes, a scale for every row and block: absmax / 127, to nearest.
  void (*quantize_rows)(const void* x, Float type, int64_t rows, int64_t in, int block, int8_t* codes, float* scale,
                        int32_t* sums, int threads);
  // Rows as floats in blocks, with their sums.
  void (*gather_rows)(const void* x, Float type, int64_t rows, int64_t in, int block, float* values, float* sums,
                      int threads);
  // Products of 8-bit codes in integers (affine weights only).
  void (*linear_int8)(const Weight&, const QuantizedRows&, const Output&, int threads);
  // Products in fp32, activations as they are.
  void (*linear_float)(const Weight&, const FloatRows&, const Output&, int threads);

  // -- bits: dense streams of codes -----------------------------------------------------------------------------
  void (*pack_bits)(const BitStreams&, const uint8_t* codes, uint8_t* packed, int threads);
  void (*unpack_bits)(const BitStreams&, const uint8_t* packed, uint8_t* codes, int threads);

  // -- nearest: groups rounded by themselves ---------------------------------------------------------------------
  // The smallest and the largest value of every group; both NaN where a value is.
  void (*group_limits)(const Groups&, const void* x, Float type, float* low, float* high, int threads);
  // Codes, values of x's type, or both (the other one null). x must be finite.
  void (*round_groups)(const Groups&, const Nearest&, const void* x, Float type, uint8_t* codes, void* values,
                       int threads);

  // -- sweep: second-order rounding, column by column -----------------------------------------------------------
  // `factors` is scratch: 8 floats for every finished column, feed and begun panel of eight columns of a call.
  // Weights w[out][in] into the targets, and the targets' values back to values[out][in].
  void (*sweep_load)(const Sweep&, const float* w, int threads);
  void (*sweep_values)(const Sweep&, float* values, int threads);
  // The columns x become the weights, which know of no other column yet.
  void (*sweep_begin)(const Sweep&, const Columns& x, int threads);
  // The columns first .. last of x take in what the finished columns from .. to feed back, in that order.
  void (*sweep_feed)(const Sweep&, const Columns& x, int64_t from, int64_t to, int64_t first, int64_t last,
                     float* factors, int threads);
  // Rounds the columns first .. last of x, which know of all columns before `first`; codes[out][in].
  void (*sweep_round)(const Sweep&, const Columns& x, int64_t first, int64_t last, const Rounding&, uint8_t* codes,
                      float* factors, int threads);
  // Writes what the columns would be if none of them were rounded or carried, current[out][stride]; of a run of calls
  // that covers a span, each call sees the history that the one before left. Targets stay.
  void (*sweep_look)(const Sweep&, const Columns& x, int64_t first, int64_t last, float* current, int64_t stride,
                     float* factors, int threads);

  // -- factor: of the matrix that second-order rounding minimises with ----------------------------------------------
  // False where a pivot is not a positive number; `packed` [size][min(size, 256)] is scratch.
  bool (*upper_factor)(const Factorization&, float* packed, int threads);

  // -- moments: of the tokens that a layer reads
  // ------------------------------------------------------------------------ Adds x^T x on and above the diagonal; what
  // is below it may change too. `packed` [tiles][tokens][32] is scratch.
  void (*add_moments)(const Moments&, float* packed, int threads);

  // -- descent: coordinate descent over columns -----------------------------------------------------------------
  // Visits the columns first .. last; null leaves them unrounded. `slopes` [tiles][last - first][32] and `factors` are
  // scratch. moved[tiles] becomes 1 where a value changed.
  void (*descend)(const Descent&, int64_t first, int64_t last, const Rounding* rounding, float* slopes, float* factors,
                  uint8_t* moved, int threads);

  // -- kmeans: tables of levels ---------------------------------------------------------------------------------
  // Ascending centres[lines][levels].
  void (*kmeans)(const Lines&, float* centres, int threads);

  // -- hadamard: y is x with its blocks turned ------------------------------------------------------------------
  void (*hadamard)(const Hadamard&, const void* x, void* y, int threads);

  // -- further products (core/variants.h) ------------------------------------------------------------------------
  // Rows coded as a recipe says; shift[rows][runs] = -scale * zero point and values (what the codes mean) may be null.
  void (*code_rows)(const Coding&, const void* x, Float type, int64_t rows, int64_t in, int block, int8_t* codes,
                    float* scale, int32_t* sums, float* shift, float* values, int threads);
  // Rows as bf16; null where linear_bf16 is.
  void (*gather_halves)(const void* x, Float type, int64_t rows, int64_t in, int block, uint16_t* values, float* sums,
                        int threads);
  void (*to_floats)(const void* x, Float type, int64_t count, float* values);
  void (*linear_lookup)(const Weight&, const ByteTables&, const QuantizedRows&, const Output&, int threads);
  // Null where the instruction set has no dot product of bf16.
  void (*linear_bf16)(const Weight&, const HalfTable&, const HalfRows&, const Output&, int threads);
  void (*linear_ternary)(const TernaryWeight&, const QuantizedRows&, const Output&, int threads);
  // Planes of one bit, codes [bits][tiles][in / 32][64]; activations of `bits` bits from `lowest`, one scale for a row.
  void (*linear_bits)(const Weight&, const QuantizedRows&, int bits, int32_t lowest, const int32_t* counts,
                      const Output&, int threads);
  // Nibbles of 4 bits of a plane, or of two ternary digits: codes [out / 64][blocks][planes][64 * ...].
  void (*linear_sums)(const Weight&, const QuantizedRows&, bool ternary, const Output&, int threads);
  // y = main + terms + bias, main[rows][out].
  void (*add_terms)(const Terms&, const float* x, int64_t rows, int64_t in, int64_t out, const float* main,
                    const Output&, int threads);
  // Windows first .. first + count - 1 of an image as rows[count][inputs]; rows[count][out] into y[place + o *
  // positions
  // + p].
  void (*window_rows)(const Windows&, int64_t image, int64_t first, int64_t count, float* rows);
  void (*rows_to_image)(const float* rows, int64_t count, int64_t out, int64_t positions, int64_t place, Float type,
                        void* y);

  // -- trellis: codes of a state's bits (core/trellis.h) --------------------------------------------------------
  // codes[rows][columns] of the least squared error that Viterbi's algorithm finds; around: rotated first pass.
  void (*trellis_search)(const TrellisSearch&, uint8_t* codes, int threads);
  // codes[out][in] into the layout of a TrellisWeight.
  void (*trellis_pack)(const TrellisWeight&, const uint8_t* codes, uint32_t* packed, int threads);
  // Products; the blocks of the activations are those of the weight, in integers 1MAD only.
  void (*trellis_float)(const TrellisWeight&, const FloatRows&, const Output&, int threads);
  void (*trellis_int8)(const TrellisWeight&, const QuantizedRows&, const Output&, int threads);

  // -- decoding: fp32 rows, on the calling thread --------------------------------------------------------------
  void (*norm_row)(const Norm&, const float* x, float* y);
  // x += factor * y
  void (*add_row)(float* x, const float* y, float factor, int64_t count);
  // y = activation(gate) * up; without up: activation(gate)
  void (*gate_row)(Activation, const float* gate, const float* up, float* y, int64_t count);
  // x *= factor, then cap * tanh(x / cap) where cap is not 0
  void (*cap_row)(float* x, float factor, float cap, int64_t count);
  // The outputs [first, last) of y[rows][out] = x W^T + bias for a float matrix.
  void (*linear_dense)(const Dense&, const float* x, int64_t rows, float* y, int64_t first, int64_t last);
  void (*attend)(const Attend&);

  // -- vectors: codes of several weights (core/vectors.h) --------------------------------------------------------
  // Indices[count][books] of the entries whose sums are near x[count][span], and codes of the nearest points of E8P.
  void (*beam_search)(const Books&, const float* x, int64_t count, int32_t* index, int threads);
  void (*nearest_e8p)(const BasePoints&, const float* x, int64_t count, int32_t* codes, int threads);
  // Products; every 32 inputs of the activations are exchanged (exchange_spans).
  void (*lattice_int8)(const Weight&, const LatticeTables&, const QuantizedRows&, const Output&, int threads);
  void (*lattice_float)(const Weight&, const LatticeTables&, const FloatRows&, const Output&, int threads);
  // x[rows][in] as it is.
  void (*additive_float)(const AdditiveWeight&, const void* x, Float type, int64_t rows, const Output&, int threads);

  // -- probes ---------------------------------------------------------------------------------------------------
  // Reads every whole half mebibyte of the data; what comes back has no meaning.
  int32_t (*read_all)(const uint8_t* data, int64_t bytes, int threads);
  // turns * 4096 * 12 dot products of 64 bytes.
  int32_t (*multiply_bytes)(int64_t turns, int threads);
};

// The tables of this build that the processor can run, the fastest first; ends with scalar.
const Kernels* const* available(size_t* count);

#define BW_TABLE(isa)     \
  namespace isa {         \
  const Kernels& table(); \
  }
BW_TABLE(avx512)
BW_TABLE(avx2)
BW_TABLE(neon)
BW_TABLE(scalar)
#undef BW_TABLE

}  // namespace bw
