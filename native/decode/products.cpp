#include "decode/products.h"

#include <algorithm>
#include <cstring>

#include "core/half.h"
#include "core/pool.h"

namespace bw {
namespace {

constexpr int64_t kPartBytes = 64 * 1024;  // of weights in one chunk of work

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

// Units of work of a matrix (tiles, or rows of floats), and how many of them a chunk takes.
struct Share {
  int64_t units, step, chunks;
};

Share share(const Matrix& matrix, int64_t all_bytes, int threads) {
  const int64_t unit = matrix.packed ? matrix.weight.tile_bytes()
                                     : 4 * matrix.dense.in * (matrix.dense.type == Float::f32 ? 4 : 2);
  const int64_t units = matrix.packed ? matrix.weight.tiles() : (matrix.dense.out + 3) / 4;
  const int64_t bytes = std::min(kPartBytes, all_bytes / (int64_t{8} * threads));
  const int64_t step = std::clamp<int64_t>(bytes / std::max<int64_t>(unit, 1), 1, units);
  return {units, step, (units + step - 1) / step};
}

int64_t matrix_bytes(const Matrix& matrix) {
  if (matrix.packed) return matrix.weight.tiles() * matrix.weight.tile_bytes();
  return matrix.dense.out * matrix.dense.in * (matrix.dense.type == Float::f32 ? 4 : 2);
}

}  // namespace

void Products::prepare(const Matrix& matrix, const float* x, int64_t rows, int threads) {
  if (!matrix.packed) return;
  const Weight& weight = matrix.weight;
  const int form = matrix.exact ? -weight.block : weight.block;
  if (form == form_) return;
  form_ = form;
  const int64_t places = weight.blocks * rows, values = places * weight.block;
  if (matrix.exact) {
    float* cut = values_.get(values);
    float* parts = parts_.get(places);
    kernels_.gather_rows(x, Float::f32, rows, weight.in, weight.block, cut, parts, threads);
    floats_ = {rows, weight.block, weight.blocks, cut, parts};
    return;
  }
  int8_t* codes = codes_.get(values);
  float* scale = scale_.get(places);
  int32_t* sums = sums_.get(places);
  kernels_.quantize_rows(x, Float::f32, rows, weight.in, weight.block, codes, scale, sums, threads);
  quantized_ = {rows, weight.block, weight.blocks, codes, scale, sums};
}

void Products::whole(const Matrix& matrix, const float* x, int64_t rows, float* y, int threads) {
  prepare(matrix, x, rows, threads);
  const Output output{y, Float::f32, matrix.bias};
  if (matrix.packed) {
    matrix.exact ? kernels_.linear_float(matrix.weight, floats_, output, threads)
                 : kernels_.linear_int8(matrix.weight, quantized_, output, threads);
    return;
  }
  const int64_t out = matrix.dense.out, step = 16;
  parallel_for(threads, (out + step - 1) / step, [&](int64_t chunk, int) {
    kernels_.linear_dense(matrix.dense, x, rows, y, chunk * step, std::min(out, (chunk + 1) * step));
  });
}

void Products::part(const Matrix& matrix, const float* x, float* y, int64_t first, int64_t last) {
  if (!matrix.packed) {
    kernels_.linear_dense(matrix.dense, x, 1, y, 4 * first, std::min(matrix.dense.out, 4 * last));
    return;
  }
  const Weight weight = view(matrix.weight, first, last);
  const Output output{y + first * kRows, Float::f32, matrix.bias ? matrix.bias + first * kRows : nullptr};
  matrix.exact ? kernels_.linear_float(weight, floats_, output, 1) : kernels_.linear_int8(weight, quantized_, output, 1);
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
    if (!matrix.packed) continue;
    const int own = matrix.exact ? -matrix.weight.block : matrix.weight.block;
    alike = alike && (form == 0 || form == own);
    form = own;
  }
  if (!alike) {
    for (size_t i = 0; i < chosen.size(); ++i) whole(all[static_cast<size_t>(chosen[i])], x, rows, y[i], threads);
    return;
  }
  Share shares[kMost];
  int64_t chunks = 0;
  for (size_t i = 0; i < chosen.size(); ++i) {
    const Matrix& matrix = all[static_cast<size_t>(chosen[i])];
    prepare(matrix, x, rows, threads);
    shares[i] = share(matrix, bytes, threads);
    chunks += shares[i].chunks;
  }
  parallel_for(threads, chunks, [&](int64_t chunk, int) {
    size_t i = 0;
    while (chunk >= shares[i].chunks) chunk -= shares[i++].chunks;
    const int64_t first = chunk * shares[i].step, last = std::min(shares[i].units, first + shares[i].step);
    part(all[static_cast<size_t>(chosen[i])], x, y[i], first, last);
  });
}

void Products::row(const Matrix& matrix, int64_t index, float* y) {
  if (!matrix.packed) {
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
