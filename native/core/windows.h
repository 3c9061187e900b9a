// The windows of a convolution as rows of a product.
#pragma once

#include <cstdint>

#include "core/weight.h"

namespace bw {

// One group of channels of images x[batch][channels][height][width]; zeros outside of an image.
struct Windows {
  const void* x = nullptr;
  Float type = Float::f32;
  int64_t channels = 0, height = 0, width = 0;  // of the images
  int64_t first_channel = 0, count = 0;         // channels of the group
  int64_t kernel_height = 0, kernel_width = 0;
  int64_t stride_down = 1, stride_right = 1;
  int64_t above = 0, left = 0;  // rows and columns of zeros before the image
  int64_t dilation_down = 1, dilation_right = 1;
  int64_t out_height = 0, out_width = 0;

  int64_t inputs() const { return count * kernel_height * kernel_width; }
  int64_t positions() const { return out_height * out_width; }
};

}  // namespace bw
