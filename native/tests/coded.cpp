// Activations as the further products read them: coded as a recipe says, as bf16, as fp32; against plain loops.
#include "tests/weights.h"

namespace bw::test {
namespace {

Coding random_coding(Random& random, int64_t in, int block) {
  Coding coding;
  const int bits = static_cast<int>(random.number(2, 8));
  coding.asymmetric = random.coin();
  coding.low =
      coding.asymmetric ? 0.0f : -static_cast<float>(1 << (bits - 1)) + static_cast<float>(random.number(0, 1));
  coding.high = static_cast<float>((coding.asymmetric ? 1 << bits : 1 << (bits - 1)) - 1);
  coding.steps = coding.asymmetric ? coding.high : coding.high + 0.5f * static_cast<float>(random.number(0, 1));
  coding.run = random.coin() ? in + random.number(0, 3) : block * random.number(1, 3);
  coding.clip = random.one_of({1.0f, 1.0f, 0.7f});
  coding.given = random.number(0, 3) == 0;
  if (coding.given) coding.scale = random.uniform(1e-3f, 2);
  if (coding.given && coding.asymmetric) coding.zero = static_cast<float>(random.number(0, (1 << bits) - 1));
  return coding;
}

// Scale and zero point of a run, as the definition computes them in fp32.
void range_of(const Coding& coding, const Rows& x, int64_t row, int64_t first, int64_t stop, float& scale,
              float& zero) {
  scale = coding.scale, zero = coding.zero;
  if (coding.given) return;
  constexpr float kSmallest = std::numeric_limits<float>::min();
  const auto positive = [](float made, float extent) { return extent > 0 ? std::fmax(made, kSmallest) : 1.0f; };
  float most = 0, least = 0;
  for (int64_t k = first; k < stop; ++k) {
    const float value = x.values[row * x.in + k];
    most = std::fmax(most, coding.asymmetric ? value : std::fabs(value));
    least = std::fmin(least, value);
  }
  const float top = most * coding.clip, bottom = least * coding.clip;
  zero = 0;
  if (!coding.asymmetric) return void(scale = positive(top / coding.steps, top));
  scale = positive((top - bottom) / coding.steps, top - bottom);
  zero = std::fmin(std::fmax(std::nearbyint(-bottom / scale), 0.0f), coding.steps);
}

void coded_rows(const Kernels& kernels, Random& random, int threads) {
  const int block = random.one_of({32, 64, 128, 160, 256});
  const Rows x = make_rows(random, random.number(1, 600));
  const Coding coding = random_coding(random, x.in, block);
  const int64_t runs = (x.in + coding.run - 1) / coding.run;
  const std::string text = std::to_string(x.rows) + "x" + std::to_string(x.in) + " to levels " +
                           std::to_string(coding.low) + " to " + std::to_string(coding.high);
  Coded coded(x.rows, x.in, block);
  Exact<float> shift(x.rows * runs), values(x.rows * x.in);
  const bool shifts = random.coin(), meant = random.coin();
  kernels.code_rows(coding, x.data(), x.type, x.rows, x.in, block, coded.codes.data(), coded.scale.data(),
                    coded.sums.data(), shifts ? shift.data() : nullptr, meant ? values.data() : nullptr, threads);
  const int centre = coding.asymmetric && coding.high > 127 ? 128 : 0;
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t b = 0; b < coded.blocks; ++b) {
      const int64_t run = b * block / coding.run, first = run * coding.run, place = b * x.rows + row;
      const int64_t stop = std::min(x.in, first + coding.run);
      bool bad = false;
      for (int64_t k = first; k < stop; ++k) bad = bad || !std::isfinite(x.values[row * x.in + k]);
      if (bad) {
        check(std::isnan(coded.scale[place]), "the scale of a run with NaN or Inf is NaN: " + text);
        continue;
      }
      float scale, zero;
      range_of(coding, x, row, first, stop, scale, zero);
      check(coded.scale[place] == scale, "the scale of a run: " + text);
      if (shifts) check(shift[row * runs + run] == -scale * (zero - static_cast<float>(centre)), "a shift: " + text);
      int32_t sum = 0;
      for (int64_t k = b * block; k < (b + 1) * block; ++k) {
        int code = 0;
        if (k < x.in) {
          float level = x.values[row * x.in + k] / scale;
          if (coding.asymmetric) level += zero;
          code = static_cast<int>(std::nearbyint(std::fmin(std::fmax(level, coding.low), coding.high)));
          if (meant) check(values[row * x.in + k] == (static_cast<float>(code) - zero) * scale, "a meaning: " + text);
          code -= centre;
        }
        check(coded.code(row, k) == code, "the code of an activation: " + text);
        sum += code;
      }
      check(coded.sums[place] == sum, "the sum of a block's codes: " + text);
    }
  }
}

// Rows of bf16 lie in the order of the products' pairs; sums are of what was rounded.
void halves(const Kernels& kernels, Random& random, int threads) {
  constexpr int kOrder[8] = {0, 2, 1, 3, 4, 6, 5, 7};
  const int block = random.one_of({16, 32, 64, 128, 256});
  const Rows x = make_rows(random, random.number(1, 600));
  const int64_t blocks = (x.in + block - 1) / block;
  Exact<uint16_t> values(blocks * x.rows * block);
  Exact<float> sums(blocks * x.rows);
  kernels.gather_halves(x.data(), x.type, x.rows, x.in, block, values.data(), sums.data(), threads);
  for (int64_t row = 0; row < x.rows; ++row) {
    if (x.bad[static_cast<size_t>(row)]) continue;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t place = b * x.rows + row;
      double sum = 0, size = 0;
      for (int64_t k = 0; k < block; ++k) {
        const int64_t column = b * block + k / 8 * 8 + kOrder[k % 8];
        const float wanted = column < x.in ? x.values[row * x.in + column] : 0.0f;
        const float got = from_bf16(values[place * block + k]);
        // Numbers below bf16's normal range may become zero.
        check(got == from_bf16(to_bf16(wanted)) || (got == 0 && std::fabs(wanted) < 1.2e-38f), "a bf16 activation");
        sum += got, size += std::fabs(got);
      }
      check(std::fabs(sums[place] - sum) <= 1e-5 * size, "the sum of a block of bf16");
    }
  }
}

}  // namespace

void test_coded(const Kernels& kernels, Random& random, int turns) {
  for (int turn = 0; turn < turns; ++turn) {
    const int threads = static_cast<int>(random.number(1, 4));
    coded_rows(kernels, random, threads);
    if (kernels.gather_halves) halves(kernels, random, threads);
    const Rows x = make_rows(random, random.number(1, 100));
    Exact<float> floats(x.rows * x.in);
    kernels.to_floats(x.data(), x.type, floats.size(), floats.data());
    for (int64_t i = 0; i < floats.size(); ++i)
      check(floats[i] == x.values[i] || (std::isnan(floats[i]) && std::isnan(x.values[i])), "a float stays what it is");
  }
}

}  // namespace bw::test
