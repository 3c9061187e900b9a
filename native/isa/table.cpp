// Compiled once for each instruction set: which functions it has.
#include "core/table.h"

#include "kernels/bits.h"
#include "kernels/decode.h"
#include "kernels/descent.h"
#include "kernels/factor.h"
#include "kernels/hadamard.h"
#include "kernels/kmeans.h"
#include "kernels/linear.h"
#include "kernels/moments.h"
#include "kernels/nearest.h"
#include "kernels/probe.h"
#include "kernels/sweep.h"
#include "kernels/trellis.h"
#include "kernels/variants.h"
#include "kernels/vectors.h"

namespace bw::BW_ISA {

#define BW_TEXT_(name) #name
#define BW_TEXT(name) BW_TEXT_(name)

const Kernels& table() {
  static const Kernels kernels = {
      .name = BW_TEXT(BW_ISA),
      .pack_weight = pack_weight,
      .unpack_weight = unpack_weight,
      .quantize_rows = quantize_rows,
      .gather_rows = gather_rows,
      .linear_int8 = linear_int8,
      .linear_float = linear_float,
      .pack_bits = pack_bits,
      .unpack_bits = unpack_bits,
      .group_limits = group_limits,
      .round_groups = round_groups,
      .sweep_load = sweep_load,
      .sweep_values = sweep_values,
      .sweep_begin = sweep_begin,
      .sweep_feed = sweep_feed,
      .sweep_round = sweep_round,
      .sweep_look = sweep_look,
      .upper_factor = upper_factor,
      .add_moments = add_moments,
      .descend = descend,
      .kmeans = kmeans,
      .hadamard = hadamard,
      .code_rows = code_rows,
      .gather_halves = gather_halves,
      .to_floats = to_floats,
      .linear_lookup = linear_lookup,
      .linear_bf16 = linear_bf16,
      .linear_ternary = linear_ternary,
      .linear_bits = linear_bits,
      .linear_sums = linear_sums,
      .add_terms = add_terms,
      .window_rows = window_rows,
      .rows_to_image = rows_to_image,
      .trellis_search = trellis_search,
      .trellis_pack = trellis_pack,
      .trellis_float = trellis_float,
      .trellis_int8 = trellis_int8,
      .norm_row = norm_row,
      .add_row = add_row,
      .gate_row = gate_row,
      .cap_row = cap_row,
      .linear_dense = linear_dense,
      .attend = attend,
      .beam_search = beam_search,
      .nearest_e8p = nearest_e8p,
      .lattice_int8 = lattice_int8,
      .lattice_float = lattice_float,
      .additive_float = additive_float,
      .read_all = read_all,
      .multiply_bytes = multiply_bytes,
  };
  return kernels;
}

}  // namespace bw::BW_ISA
