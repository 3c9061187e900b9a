// Products of a step: several matrices that read the same rows, in one parallel region where there is one row.
#pragma once

#include <span>

#include "core/network.h"
#include "core/table.h"
#include "decode/scratch.h"

namespace bw {

class Products {
 public:
  explicit Products(const Kernels& kernels) : kernels_(kernels) {}

  // y[i][rows][out_i] = x[rows][in] W_i^T + bias_i.
  void run(const std::vector<Matrix>& all, std::span<const int> chosen, const float* x, int64_t rows,
           float* const* y, int threads);
  // Row `index` of a matrix as floats.
  void row(const Matrix& matrix, int64_t index, float* y);
  int64_t bytes() const { return codes_.bytes() + scale_.bytes() + sums_.bytes() + values_.bytes() + parts_.bytes(); }

 private:
  void prepare(const Matrix& matrix, const float* x, int64_t rows, int threads);
  void whole(const Matrix& matrix, const float* x, int64_t rows, float* y, int threads);
  void part(const Matrix& matrix, const float* x, float* y, int64_t first, int64_t last);

  const Kernels& kernels_;
  // The rows in the form that the last product read, so that the next need not make it again.
  int form_ = 0;  // 0: none; else the block, negative where exact
  Buffer64<int8_t> codes_;
  Buffer64<float> scale_, values_, parts_;
  Buffer64<int32_t> sums_;
  Buffer64<uint8_t> row_;
  QuantizedRows quantized_;
  FloatRows floats_;
};

}  // namespace bw
