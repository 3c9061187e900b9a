#include "decode/products.h"

#include <algorithm>
#include <cstring>

#include "core/half.h"
#include "core/pool.h"
#include "core/shares.h"

namespace bw {
namespace {

constexpr int64_t kPartBytes = 64 * 1024;  // of weights in the smallest chunk of work

int64_t scale_bytes(const Weight& weight) { return weight.scale_type == Float::f32 ? 4 : 2; }

// The tiles [first, last) of a weight.
Weight view(const Weight& weight, int64_t first, int64_t last) {
  Weight part = weight;
  part.out = std::min(weight.out, last * kRows) - first * kRows;
  part.codes += first * weight.tile_bytes();
  const int64_t parameters = first * weight.groups * kRows;
  part.scale = static_cast<const char*>(weight.scale) + parameters * scale_bytes(weight);
  if (part.zero_codes) part.zero_codes += parameters;
  if (part.zeros) part.zeros += parameters;
  if (weight.levels == Levels::row_table) part.table += parameters << weight.bits;
  return part;
}

float scale_at(const Weight& weight, int64_t place) {
  if (weight.scale_type == Float::f32) return static_cast<const float*>(weight.scale)[place];
  const uint16_t half = static_cast<const uint16_t*>(weight.scale)[place];
  return weight.scale_type == Float::f16 ? from_f16(half) : from_bf16(half);
}

// The tiles [first, last) of a packed matrix.
Matrix view(const Matrix& matrix, int64_t first, int64_t last) {
  Matrix part = matrix;
  if (matrix.form == Form::ternary) {
    const int64_t size = matrix.ternary.scale_type == Float::f32 ? 4 : 2;
    part.ternary.out = std::min(matrix.ternary.out, last * kRows) - first * kRows;
    part.ternary.codes += first * matrix.tile_bytes();
    part.ternary.scale = static_cast<const char*>(matrix.ternary.scale) + first * kRows * size;
  } else {
    part.weight = view(matrix.weight, first, last);
    if (matrix.form == Form::lookup && matrix.tables.by_row) {
      const int64_t tables = first * matrix.weight.groups * 4 * kVector;
      part.tables.low += tables;
      part.tables.high += tables;
    }
  }
  if (part.bias) part.bias += first * kRows;
  return part;
}

// Which form of the rows a matrix reads: the block, and whether as floats, bytes or bf16.
int rows_form(const Matrix& matrix) {
  if (matrix.form == Form::dense) return 0;
  const int kind = matrix.form == Form::exact ? 1 : matrix.form == Form::bf16 ? 2 : 3;
  return matrix.block() * 4 + kind;
}

int64_t float_bytes(Float type) { return type == Float::f32 ? 4 : 2; }

// Units of work of a matrix: tiles, or four rows of floats.
int64_t units_of(const Matrix& matrix) { return matrix.packed() ? matrix.tiles() : (matrix.dense.out + 3) / 4; }

int64_t matrix_bytes(const Matrix& matrix) {
  if (matrix.packed()) return matrix.tiles() * matrix.tile_bytes();
  return matrix.dense.out * matrix.dense.in * float_bytes(matrix.dense.type);
}

}  // namespace

void Products::prepare(const Matrix& matrix, const float* x, int64_t rows, int threads) {
  const int form = rows_form(matrix);
  if (form == 0 || form == form_) return;
  form_ = form;
  const int block = matrix.block();
  const int64_t in = matrix.in(), blocks = (in + block - 1) / block, places = blocks * rows;
  const int64_t values = places * block;
  if (matrix.form == Form::exact) {
    float* cut = values_.get(values);
    float* parts = parts_.get(places);
    kernels_.gather_rows(x, Float::f32, rows, in, block, cut, parts, threads);
    floats_ = {rows, block, blocks, cut, parts};
  } else if (matrix.form == Form::bf16) {
    uint16_t* cut = shorts_.get(values);
    float* parts = parts_.get(places);
    kernels_.gather_halves(x, Float::f32, rows, in, block, cut, parts, threads);
    halves_ = {rows, block, blocks, cut, parts};
  } else {
    int8_t* codes = codes_.get(values);
    float* scale = scale_.get(places);
    int32_t* sums = sums_.get(places);
    kernels_.quantize_rows(x, Float::f32, rows, in, block, codes, scale, sums, threads);
    quantized_ = {rows, block, blocks, codes, scale, sums};
  }
}

void Products::multiply(const Matrix& matrix, float* y, int threads) {
  const Output output{y, Float::f32, matrix.bias};
  switch (matrix.form) {
    case Form::exact: return kernels_.linear_float(matrix.weight, floats_, output, threads);
    case Form::int8: return kernels_.linear_int8(matrix.weight, quantized_, output, threads);
    case Form::lookup: return kernels_.linear_lookup(matrix.weight, matrix.tables, quantized_, output, threads);
    case Form::bf16: return kernels_.linear_bf16(matrix.weight, matrix.levels, halves_, output, threads);
    case Form::ternary: return kernels_.linear_ternary(matrix.ternary, quantized_, output, threads);
    case Form::dense: return;
  }
}

void Products::whole(const Matrix& matrix, const float* x, int64_t rows, float* y, int threads) {
  prepare(matrix, x, rows, threads);
  if (matrix.packed()) return multiply(matrix, y, threads);
  const int64_t out = matrix.dense.out, step = 16;
  parallel_for(threads, (out + step - 1) / step, [&](int64_t chunk, int) {
    kernels_.linear_dense(matrix.dense, x, rows, y, chunk * step, std::min(out, (chunk + 1) * step));
  });
}

void Products::part(const Matrix& matrix, const float* x, float* y, int64_t first, int64_t last) {
  if (matrix.packed()) return multiply(view(matrix, first, last), y + first * kRows, 1);
  kernels_.linear_dense(matrix.dense, x, 1, y, 4 * first, std::min(matrix.dense.out, 4 * last));
}

void Products::run(const std::vector<Matrix>& all, std::span<const int> chosen, const float* x, int64_t rows,
                   float* const* y, int threads) {
  form_ = 0;
  constexpr size_t kMost = 8;
  bool alike = rows == 1 && threads > 1 && chosen.size() <= kMost;
  int form = 0;
  int64_t bytes = 0;
  for (int index : chosen) {
    const Matrix& matrix = all[static_cast<size_t>(index)];
    bytes += matrix_bytes(matrix);
    const int own = rows_form(matrix);
    if (own == 0) continue;
    alike = alike && (form == 0 || form == own);
    form = own;
  }
  if (!alike) {
    for (size_t i = 0; i < chosen.size(); ++i) whole(all[static_cast<size_t>(chosen[i])], x, rows, y[i], threads);
    return;
  }
  int64_t starts[kMost + 1] = {};  // units before each matrix, as if they were one
  for (size_t i = 0; i < chosen.size(); ++i) {
    const Matrix& matrix = all[static_cast<size_t>(chosen[i])];
    prepare(matrix, x, rows, threads);
    starts[i + 1] = starts[i] + units_of(matrix);
  }
  const int64_t units = starts[chosen.size()];
  const int64_t smallest = std::min(kPartBytes, bytes / (int64_t{8} * threads)) * units / std::max<int64_t>(bytes, 1);
  const Shares shares(units, smallest, threads);
  parallel_for(threads, shares.chunks(), [&](int64_t chunk, int) {
    for (size_t i = 0; i < chosen.size(); ++i) {
      const int64_t first = std::max(shares.first(chunk), starts[i]) - starts[i];
      const int64_t last = std::min(shares.last(chunk), starts[i + 1]) - starts[i];
      if (first < last) part(all[static_cast<size_t>(chosen[i])], x, y[i], first, last);
    }
  });
}

void Products::run_apart(const std::vector<Matrix>& all, std::span<const int> chosen, const float* x, int64_t rows,
                         float* const* y, int threads) {
  // Sums of one row have the same order beside any others, but in bf16, where chains of sums hang on the number of
  // rows: up to four have the order of one in 4 bits, none in other widths.
  int64_t most = rows;
  for (int index : chosen) {
    const Matrix& matrix = all[static_cast<size_t>(index)];
    if (matrix.form == Form::bf16) most = std::min<int64_t>(most, matrix.weight.bits == 4 ? 4 : 1);
  }
  std::vector<float*> places(y, y + chosen.size());
  for (int64_t first = 0; first < rows; first += most) {
    const int64_t here = std::min(most, rows - first);
    run(all, chosen, x, here, places.data(), threads);
    x += here * all[static_cast<size_t>(chosen[0])].in();
    for (size_t i = 0; i < places.size(); ++i) places[i] += here * all[static_cast<size_t>(chosen[i])].out();
  }
}

void Products::row(const Matrix& matrix, int64_t index, float* y) {
  if (!matrix.packed()) {
    const Dense& dense = matrix.dense;
    const int64_t start = index * dense.in;
    if (dense.type == Float::f32) {
      std::memcpy(y, static_cast<const float*>(dense.values) + start, static_cast<size_t>(dense.in) * sizeof(float));
      return;
    }
    const auto* half = static_cast<const uint16_t*>(dense.values) + start;
    for (int64_t k = 0; k < dense.in; ++k) y[k] = dense.type == Float::f16 ? from_f16(half[k]) : from_bf16(half[k]);
    return;
  }
  const Weight& weight = matrix.weight;
  const int64_t tile = index / kRows, r = index % kRows;
  const Weight part = view(weight, tile, tile + 1);
  uint8_t* codes = row_.get(kRows * weight.in);
  kernels_.unpack_weight(part, codes, 1);
  const int64_t width = weight.block * weight.blocks_per_scale;
  for (int64_t k = 0; k < weight.in; ++k) {
    const int64_t place = k / width * kRows + r;
    const float scale = scale_at(part, place);
    const int code = codes[r * weight.in + k];
    if (weight.levels == Levels::affine) {
      float zero = static_cast<float>(weight.zero);
      if (part.zero_codes) zero = part.zero_codes[place];
      if (part.zeros) zero = part.zeros[place];
      y[k] = scale * (static_cast<float>(code) - zero);
    } else {
      y[k] = scale * part.table[weight.levels == Levels::table ? code : (place << weight.bits) + code];
    }
  }
}

}  // namespace bw
