// Activations coded in integers as a recipe says: the same divisions and roundings as the float definition.
#include <cmath>
#include <cstring>

#include "core/pool.h"
#include "core/table.h"
#include "kernels/load.h"
#include "kernels/variants.h"
#include "simd/bytes.h"

namespace bw::BW_ISA {
namespace {

constexpr float kSmallest = 1.17549435e-38f;  // the smallest normal number: no scale is below it
constexpr int kPiece = 64;                    // values that are loaded at once

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

struct Range {
  float scale, zero;
};

class Row {
 public:
  Row(const Coding& coding, const void* x, Float type, int64_t row, int64_t in)
      : coding_(coding), x_(x), type_(type), start_(row * in) {}

  // Scale and zero point of inputs first .. stop - 1; a NaN or an infinity makes the scale NaN.
  Range range(int64_t first, int64_t stop) const {
    F32x16 high = zero_f32(), low = zero_f32(), probe = zero_f32();
    alignas(64) float values[kPiece];
    for (int64_t k = first; k < stop; k += kPiece) {
      load_padded(x_, type_, start_ + k, smaller(kPiece, stop - k), kPiece, values);
      for (int j = 0; j < kPiece; j += 16) {
        const F32x16 here = load(values + j);
        high = max(high, coding_.asymmetric ? here : absolute(here));
        low = min(low, here);
        probe = fma(here, zero_f32(), probe);
      }
    }
    const float bad = sum(probe);
    if (coding_.given) return {coding_.scale + bad, coding_.zero};
    const float top = largest(high) * coding_.clip;
    if (!coding_.asymmetric) return {positive(top / coding_.steps, top) + bad, 0};
    const float bottom = -largest(sub(zero_f32(), low)) * coding_.clip;
    const float scale = positive((top - bottom) / coding_.steps, top - bottom);
    const float zero = std::nearbyint(-bottom / scale);
    return {scale + bad, zero < 0 ? 0 : zero > coding_.steps ? coding_.steps : zero};
  }

  // Codes of a block, less 128 where they have no sign and 8 bits; their sum.
  int32_t code(int64_t first, int64_t stop, int block, Range range, int32_t centre, int8_t* codes,
               float* values) const {
    const F32x16 scale = splat(range.scale), zero = splat(range.zero);
    const F32x16 low = splat(coding_.low), high = splat(coding_.high);
    alignas(64) float piece[16];
    I32x16 total = zero_i32();
    int32_t tail = 0;
    for (int64_t k = first; k < first + block; k += 16, codes += 16) {
      const int64_t count = k < stop ? smaller(16, stop - k) : 0;
      load_padded(x_, type_, start_ + k, count, 16, piece);
      F32x16 level = div(load(piece), scale);
      if (coding_.asymmetric) level = add(level, zero);
      // Rounded before it is cut, as the definition does: integers at both ends make the order indifferent.
      const F32x16 cut = min(max(level, low), high);
      const I32x16 code = sub(to_i32(cut), splat_i32(centre));
      store_low_bytes(codes, code);
      if (values && count) {
        store(piece, mul(sub(to_f32(to_i32(cut)), zero), scale));
        std::memcpy(values + k, piece, static_cast<size_t>(count) * sizeof(float));
      }
      if (count == 16) {
        total = add(total, code);
        continue;
      }
      std::memset(codes + count, 0, static_cast<size_t>(16 - count));
      for (int j = 0; j < count; ++j) tail += codes[j];
    }
    return sum(total) + tail;
  }

 private:
  static float positive(float scale, float extent) {
    if (!(extent > 0)) return 1;
    return scale < kSmallest ? kSmallest : scale;
  }

  const Coding& coding_;
  const void* x_;
  Float type_;
  int64_t start_;
};

}  // namespace

void code_rows(const Coding& coding, const void* x, Float type, int64_t rows, int64_t in, int block, int8_t* codes,
               float* scale, int32_t* sums, float* shift, float* values, int threads) {
  const int64_t runs = (in + coding.run - 1) / coding.run;
  const int32_t centre = coding.asymmetric && coding.high > 127 ? 128 : 0;
  parallel_for(rows > 1 ? threads : 1, rows, [&](int64_t r, int) {
    const Row row(coding, x, type, r, in);
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t first = run * coding.run, stop = smaller(in, first + coding.run);
      const Range range = row.range(first, stop);
      if (shift) shift[r * runs + run] = -range.scale * (range.zero - static_cast<float>(centre));
      for (int64_t k = first; k < stop; k += block) {
        const int64_t place = k / block * rows + r;
        scale[place] = range.scale;
        sums[place] =
            row.code(k, stop, block, range, centre, codes + place * block, values ? values + r * in : nullptr);
      }
    }
  });
}

void to_floats(const void* x, Float type, int64_t count, float* values) { load_padded(x, type, 0, count, 0, values); }

}  // namespace bw::BW_ISA
