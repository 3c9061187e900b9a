#include "core/bits.h"

#include "bindings/library.h"
#include "bindings/spans.h"

namespace nb = nanobind;

namespace bw {
namespace {

BitStreams streams_of(int64_t rows, int64_t codes, int bits) {
  require(bits >= 1 && bits <= 8, "codes have 1 to 8 bits");
  require(rows >= 0 && codes >= 0 && codes <= (int64_t{1} << 48), "bit streams have a wrong shape");
  product(product(rows, codes), 8);
  return {rows, codes, bits};
}

void pack(const Library& self, int64_t rows, int64_t codes, int bits, Span source, Span packed, int threads) {
  const BitStreams streams = streams_of(rows, codes, bits);
  const auto* from = elements<const uint8_t>(source, rows * codes, "codes");
  auto* to = elements<uint8_t>(packed, product(rows, streams.row_bytes()), "packed");
  checked_threads(threads);
  nb::gil_scoped_release release;
  self.kernels->pack_bits(streams, from, to, threads);
}

void unpack(const Library& self, int64_t rows, int64_t codes, int bits, Span packed, Span target, int threads) {
  const BitStreams streams = streams_of(rows, codes, bits);
  const auto* from = elements<const uint8_t>(packed, product(rows, streams.row_bytes()), "packed");
  auto* to = elements<uint8_t>(target, rows * codes, "codes");
  checked_threads(threads);
  nb::gil_scoped_release release;
  self.kernels->unpack_bits(streams, from, to, threads);
}

}  // namespace

void bind_bits(LibraryClass& library) {
  library.def("pack_bits", pack);
  library.def("unpack_bits", unpack);
}

}  // namespace bw
