// Codes of one byte into planes, and back.
#include <cstring>

#include "core/pool.h"
#include "kernels/linear.h"
#include "kernels/planes.h"

namespace bw::BW_ISA {
namespace {

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// One tile and block as bytes [block / 4][16][4], zeros where the matrix has nothing.
void gather_block(const Weight& weight, const uint8_t* codes, int64_t tile, int64_t b, uint8_t* bytes) {
  std::memset(bytes, 0, static_cast<size_t>(kRows) * weight.block);
  const int64_t rows = smaller(kRows, weight.out - tile * kRows);
  const int64_t start = b * weight.block, count = smaller(weight.block, weight.in - start);
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* source = codes + (tile * kRows + r) * weight.in + start;
    int64_t q = 0;
    for (; 4 * q + 4 <= count; ++q) std::memcpy(bytes + q * kVector + 4 * r, source + 4 * q, 4);
    for (int64_t k = 4 * q; k < count; ++k) bytes[q * kVector + 4 * r + (k & 3)] = source[k];
  }
}

void scatter_block(const Weight& weight, const uint8_t* bytes, int64_t tile, int64_t b, uint8_t* codes) {
  const int64_t rows = smaller(kRows, weight.out - tile * kRows);
  const int64_t start = b * weight.block, count = smaller(weight.block, weight.in - start);
  for (int64_t r = 0; r < rows; ++r) {
    uint8_t* target = codes + (tile * kRows + r) * weight.in + start;
    for (int64_t k = 0; k < count; ++k) target[k] = bytes[(k >> 2) * kVector + 4 * r + (k & 3)];
  }
}

template <int bits>
void pack_block(const uint8_t* bytes, int block, uint8_t* packed) {
  each_plane<bits>([&](auto width_, auto offset_) {
    constexpr int width = width_, offset = offset_, fields = 8 / width;
    const U8x64 mask = splat_byte((1 << width) - 1);
    for (int v = 0; v < block / (4 * fields); ++v, packed += kVector) {
      U8x64 vector = splat_byte(0);
      unroll<fields>([&](auto f_) {
        constexpr int f = f_;
        const U8x64 field = shift_right<offset>(load_bytes(bytes + (v * fields + f) * kVector), mask);
        vector = bits_or(vector, shift_left_bytes<f * width>(field));
      });
      store_bytes(packed, vector);
    }
  });
}

template <int bits>
void pack_tiles(const Weight& weight, const uint8_t* codes, uint8_t* packed, int threads) {
  parallel_for(threads, weight.tiles(), [&](int64_t tile, int) {
    alignas(64) uint8_t bytes[kRows * 256];
    for (int64_t b = 0; b < weight.blocks; ++b) {
      gather_block(weight, codes, tile, b, bytes);
      pack_block<bits>(bytes, weight.block, packed + tile * weight.tile_bytes() + b * weight.block_bytes());
    }
  });
}

template <int bits>
void unpack_tiles(const Weight& weight, uint8_t* codes, int threads) {
  parallel_for(threads, weight.tiles(), [&](int64_t tile, int) {
    alignas(64) uint8_t bytes[kRows * 256];
    for (int64_t b = 0; b < weight.blocks; ++b) {
      unpack_block<bits>(weight.codes + tile * weight.tile_bytes() + b * weight.block_bytes(), weight.block, bytes);
      scatter_block(weight, bytes, tile, b, codes);
    }
  });
}

}  // namespace

void pack_weight(const Weight& weight, const uint8_t* codes, uint8_t* packed, int threads) {
  with_bits(weight.bits, [&](auto bits) { pack_tiles<bits>(weight, codes, packed, threads); });
}

void unpack_weight(const Weight& weight, uint8_t* codes, int threads) {
  with_bits(weight.bits, [&](auto bits) { unpack_tiles<bits>(weight, codes, threads); });
}

}  // namespace bw::BW_ISA
