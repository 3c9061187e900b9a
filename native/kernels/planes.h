// Codes of 1 to 8 bits as planes of fields; see core/weight.h for the layout.
#pragma once

#include <utility>

#include "core/weight.h"
#include "simd/simd.h"

namespace bw::BW_ISA {

// Calls body(integral_constant<int, 0>), ..., body(integral_constant<int, n - 1>).
template <class Body, int... i>
inline void unroll(std::integer_sequence<int, i...>, Body&& body) {
  (body(std::integral_constant<int, i>{}), ...);
}
template <int n, class Body>
inline void unroll(Body&& body) {
  unroll(std::make_integer_sequence<int, n>{}, std::forward<Body>(body));
}

// Calls body(width, offset) for the planes of a code of `bits`, the lowest bits first, as integral constants.
template <int bits, int offset = 0, class Body>
inline void each_plane(Body&& body) {
  constexpr int rest = bits - offset;
  if constexpr (rest > 0) {
    constexpr int width = bits == 8 ? 8 : rest >= 4 ? 4 : rest >= 2 ? 2 : 1;
    body(std::integral_constant<int, width>{}, std::integral_constant<int, offset>{});
    each_plane<bits, offset + width>(body);
  }
}

// Calls body(integral_constant<int, bits>) for bits of 1 to 8.
template <class Body>
inline void with_bits(int bits, Body&& body) {
  switch (bits) {
    case 1: return body(std::integral_constant<int, 1>{});
    case 2: return body(std::integral_constant<int, 2>{});
    case 3: return body(std::integral_constant<int, 3>{});
    case 4: return body(std::integral_constant<int, 4>{});
    case 5: return body(std::integral_constant<int, 5>{});
    case 6: return body(std::integral_constant<int, 6>{});
    case 7: return body(std::integral_constant<int, 7>{});
    case 8: return body(std::integral_constant<int, 8>{});
  }
}

// Writes the codes of a tile and block as bytes, [block / 4][64].
template <int bits>
inline void unpack_block(const uint8_t* w, int block, uint8_t* bytes) {
  each_plane<bits>([&](auto width_, auto offset_) {
    constexpr int width = width_, offset = offset_, fields = 8 / width;
    const U8x64 mask = splat_byte((1 << width) - 1);
    const int vectors = block / (4 * fields);
    for (int v = 0; v < vectors; ++v, w += kVector) {
      const U8x64 packed = load_bytes(w);
      unroll<fields>([&](auto f_) {
        constexpr int f = f_;
        uint8_t* place = bytes + (v * fields + f) * kVector;
        const U8x64 field = shift_left_bytes<offset>(shift_right<f * width>(packed, mask));
        store_bytes(place, offset == 0 ? field : bits_or(load_bytes(place), field));
      });
    }
  });
}

}  // namespace bw::BW_ISA
