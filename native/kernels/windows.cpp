// Windows of images as rows, and rows of results as images.
#include "core/table.h"
#include "kernels/load.h"
#include "kernels/variants.h"

namespace bw::BW_ISA {
namespace {

template <class Read>
void gather(const Windows& windows, int64_t image, int64_t first, int64_t count, float* rows, Read&& read) {
  const int64_t inputs = windows.inputs();
  for (int64_t p = 0; p < count; ++p) {
    const int64_t position = first + p;
    const int64_t top = position / windows.out_width * windows.stride_down - windows.above;
    const int64_t side = position % windows.out_width * windows.stride_right - windows.left;
    float* row = rows + p * inputs;
    for (int64_t c = 0; c < windows.count; ++c) {
      const int64_t plane = (image * windows.channels + windows.first_channel + c) * windows.height * windows.width;
      for (int64_t i = 0; i < windows.kernel_height; ++i) {
        const int64_t y = top + i * windows.dilation_down;
        const bool inside = y >= 0 && y < windows.height;
        for (int64_t j = 0; j < windows.kernel_width; ++j, ++row) {
          const int64_t x = side + j * windows.dilation_right;
          *row = inside && x >= 0 && x < windows.width ? read(plane + y * windows.width + x) : 0.0f;
        }
      }
    }
  }
}

}  // namespace

void window_rows(const Windows& windows, int64_t image, int64_t first, int64_t count, float* rows) {
  if (windows.type == Float::f32) {
    const float* x = static_cast<const float*>(windows.x);
    return gather(windows, image, first, count, rows, [x](int64_t index) { return x[index]; });
  }
  gather(windows, image, first, count, rows, [&](int64_t index) { return load_float(windows.x, windows.type, index); });
}

void rows_to_image(const float* rows, int64_t count, int64_t out, int64_t positions, int64_t place, Float type,
                   void* y) {
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t p = 0; p < count; ++p) {
      const float value = rows[p * out + o];
      const int64_t index = place + o * positions + p;
      if (type == Float::f32)
        static_cast<float*>(y)[index] = value;
      else
        static_cast<uint16_t*>(y)[index] = type == Float::f16 ? to_f16(value) : to_bf16(value);
    }
  }
}

}  // namespace bw::BW_ISA
