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
  void run(const std::vector<Matrix>& all, std::span<const int> chosen, const float* x, int64_t rows, float* const* y,
           int threads);
  // The same for rows of different sequences: every row gets the bits that it gets alone.
  void run_apart(const std::vector<Matrix>& all, std::span<const int> chosen, const float* x, int64_t rows,
                 float* const* y, int threads);
  // Row `index` of a matrix as floats.
  void row(const Matrix& matrix, int64_t index, float* y);
  int64_t bytes() const {
    return codes_.bytes() + scale_.bytes() + sums_.bytes() + values_.bytes() + parts_.bytes() + shorts_.bytes();
  }

 private:
  void prepare(const Matrix& matrix, const float* x, int64_t rows, int threads);
  // The product of the prepared rows with a packed matrix.
  void multiply(const Matrix& matrix, float* y, int threads);
  void whole(const Matrix& matrix, const float* x, int64_t rows, float* y, int threads);
  void part(const Matrix& matrix, const float* x, float* y, int64_t first, int64_t last);

  const Kernels& kernels_;
  // The rows as the last product read them, so that the next need not make them again; see rows_form().
  int form_ = 0;
  Buffer64<int8_t> codes_;
  Buffer64<float> scale_, values_, parts_;
  Buffer64<int32_t> sums_;
  Buffer64<uint8_t> row_;
  QuantizedRows quantized_;
  FloatRows floats_;
  HalfRows halves_;
  Buffer64<uint16_t> shorts_;
};

}  // namespace bw
