// What is added to a product, and the windows of a convolution, against plain loops.
#include "core/windows.h"
#include "tests/ways.h"

#include <vector>

namespace bw::test {
namespace {

// Single weights in rows, a product of narrow matrices and shifts, any of them absent.
void terms(const Kernels& kernels, Random& random, int threads) {
  const int64_t out = random.number(1, 70), in = random.number(1, 200), tiles = (out + kRows - 1) / kRows;
  std::vector<int32_t> starts{0}, columns;
  std::vector<float> values;
  const bool dense = random.number(0, 3) == 0;
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t k = 0; k < in; ++k)
      if (dense || random.number(0, 9) == 0)
        columns.push_back(static_cast<int32_t>(k)), values.push_back(random.normal());
    starts.push_back(static_cast<int32_t>(columns.size()));
  }
  Terms all;
  const bool singles = random.coin();
  if (singles) all.starts = starts.data(), all.columns = columns.data(), all.values = values.data();
  all.rank = random.one_of<int64_t>({0, 1, 5, 17});
  all.shifts = random.one_of<int64_t>({0, 0, 1, 4});
  const Rows x = rows_of(random, random.number(0, 40), in, Float::f32);
  Exact<float> left(tiles * all.rank * kRows), right(all.rank * in), sums(tiles * all.shifts * kRows);
  Exact<float> shift(x.rows * all.shifts), main(x.rows * out);
  for (Exact<float>* part : {&left, &right, &sums, &shift, &main}) fill_normal(random, *part);
  all.left = left.data(), all.right = right.data(), all.sums = sums.data(), all.shift = shift.data();
  const Bias bias(random, out);
  Result y(static_cast<Float>(random.number(0, 2)), x.rows * out);
  kernels.add_terms(all, x.values.data(), x.rows, in, out, main.data(), y.output(bias.given()), threads);
  for (int64_t row = 0; row < x.rows; ++row) {
    if (x.bad[static_cast<size_t>(row)]) continue;
    for (int64_t o = 0; o < out; ++o) {
      double sum = bias[o] + main[row * out + o], size = std::fabs(bias[o]) + std::fabs(main[row * out + o]);
      const auto add = [&](double a, double b) { sum += a * b, size += std::fabs(a * b); };
      for (int32_t k = starts[o]; singles && k < starts[o + 1]; ++k) add(values[k], x.values[row * in + columns[k]]);
      for (int64_t r = 0; r < all.rank; ++r)
        for (int64_t k = 0; k < in; ++k)
          add(double{left[(o / kRows * all.rank + r) * kRows + o % kRows]} * right[r * in + k], x.values[row * in + k]);
      for (int64_t s = 0; s < all.shifts; ++s)
        add(sums[(o / kRows * all.shifts + s) * kRows + o % kRows], shift[row * all.shifts + s]);
      check(y.holds(row * out + o, sum, size), "terms of " + std::to_string(out) + "x" + std::to_string(in));
    }
  }
}

Windows random_windows(Random& random, const Rows& x, int64_t channels, int64_t height, int64_t width) {
  Windows windows;
  windows.x = x.data(), windows.type = x.type;
  windows.channels = channels, windows.height = height, windows.width = width;
  windows.count = random.number(1, channels);
  windows.first_channel = random.number(0, channels - windows.count);
  windows.kernel_height = random.number(1, 4), windows.kernel_width = random.number(1, 4);
  windows.stride_down = random.number(1, 3), windows.stride_right = random.number(1, 3);
  windows.above = random.number(0, 4), windows.left = random.number(0, 4);
  windows.dilation_down = random.number(1, 2), windows.dilation_right = random.number(1, 2);
  // More positions than fit: what lies outside is zero, whatever was asked for.
  windows.out_height = random.number(1, 6), windows.out_width = random.number(1, 6);
  return windows;
}

void windows(const Kernels& kernels, Random& random) {
  const int64_t images = random.number(1, 2), channels = random.number(1, 4);
  const int64_t height = random.number(1, 9), width = random.number(1, 9);
  const Rows x = rows_of(random, images * channels, height * width, static_cast<Float>(random.number(0, 2)));
  const Windows w = random_windows(random, x, channels, height, width);
  const int64_t image = random.number(0, images - 1), first = random.number(0, w.positions() - 1);
  const int64_t count = random.number(0, w.positions() - first);
  Exact<float> rows(count * w.inputs());
  kernels.window_rows(w, image, first, count, rows.data());
  for (int64_t i = 0; i < rows.size(); ++i) {
    const int64_t p = first + i / w.inputs(), j = i % w.kernel_width, k = i / w.kernel_width % w.kernel_height;
    const int64_t c = i % w.inputs() / (w.kernel_height * w.kernel_width);
    const int64_t down = p / w.out_width * w.stride_down - w.above + k * w.dilation_down;
    const int64_t right = p % w.out_width * w.stride_right - w.left + j * w.dilation_right;
    const bool inside = down >= 0 && down < height && right >= 0 && right < width;
    const float wanted =
        inside ? x.values[((image * channels + w.first_channel + c) * height + down) * width + right] : 0.0f;
    check(rows[i] == wanted || (std::isnan(rows[i]) && std::isnan(wanted)), "a value of a window");
  }
  const int64_t out = random.number(1, 5), outputs = out + random.number(0, 3), at = random.number(0, outputs - out);
  Exact<float> made(count * out);
  fill_normal(random, made);
  Result y(x.type, images * outputs * w.positions());
  const int64_t place = (image * outputs + at) * w.positions() + first;
  kernels.rows_to_image(made.data(), count, out, w.positions(), place, x.type, y.output(nullptr).y);
  for (int64_t o = 0; o < out; ++o)
    for (int64_t p = 0; p < count; ++p)
      check(y.holds(place + o * w.positions() + p, made[p * out + o], 0), "a result in its image");
}

}  // namespace

void test_terms(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    terms(kernels, random, static_cast<int>(random.number(1, 4)));
    windows(kernels, random);
  }
}

}  // namespace bw::test
