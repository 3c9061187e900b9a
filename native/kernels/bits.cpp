// Codes of one byte to dense bit streams, and back.
//
// Eight codes are one word of 64 bits. Three times, two neighbours of width b, 2b, 4b close the gap between them; the
// word then holds 8b bits at its lower end. The loops over words are plain: every compiler makes vectors of them.
#include "kernels/bits.h"

#include <bit>
#include <cstring>

#include "core/pool.h"
#include "kernels/planes.h"
#include "simd/stream.h"

namespace bw::BW_ISA {
namespace {

constexpr int kWords = 64;                    // words of a batch
constexpr int64_t kChunk = int64_t{1} << 16;  // codes of a chunk of work

static_assert(std::endian::native == std::endian::little, "words are read as they lie in memory");

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The lower `used` bits of every second lane of that many bits.
constexpr uint64_t lanes(int lane, int used) {
  uint64_t mask = 0;
  for (int start = 0; start < 64; start += 2 * lane) mask |= ((uint64_t{1} << used) - 1) << start;
  return mask;
}

template <int bits>
inline uint64_t close_gaps(uint64_t word) {
  word = (word & lanes(8, bits)) | ((word >> (8 - bits)) & (lanes(8, bits) << bits));
  word = (word & lanes(16, 2 * bits)) | ((word >> (16 - 2 * bits)) & (lanes(16, 2 * bits) << 2 * bits));
  return (word & lanes(32, 4 * bits)) | ((word >> (32 - 4 * bits)) & (lanes(32, 4 * bits) << 4 * bits));
}

template <int bits>
inline uint64_t open_gaps(uint64_t word) {
  word = (word & lanes(32, 4 * bits)) | ((word << (32 - 4 * bits)) & (lanes(32, 4 * bits) << 32));
  word = (word & lanes(16, 2 * bits)) | ((word << (16 - 2 * bits)) & (lanes(16, 2 * bits) << 16));
  return (word & lanes(8, bits)) | ((word << (8 - bits)) & (lanes(8, bits) << 8));
}

// Batches of words between buffers; `packed` is followed by eight bytes that may be read and written.
template <int bits>
void pack_batch(const uint8_t* codes, uint8_t* packed) {
  uint64_t words[kWords];
  std::memcpy(words, codes, sizeof(words));
  for (uint64_t& word : words) word = close_gaps<bits>(word);
  for (int i = 0; i < kWords; ++i) std::memcpy(packed + i * bits, words + i, 8);
}

template <int bits>
void unpack_batch(const uint8_t* packed, uint8_t* codes) {
  uint64_t words[kWords];
  for (int i = 0; i < kWords; ++i) std::memcpy(words + i, packed + i * bits, 8);
  for (uint64_t& word : words) word = open_gaps<bits>(word);
  std::memcpy(codes, words, sizeof(words));
}

// The same past the cache, to aligned memory.
template <int bits>
void stream_packed(const uint8_t* codes, uint8_t* packed) {
  alignas(64) uint8_t batch[kWords * bits + 8];
  pack_batch<bits>(codes, batch);
  for (int i = 0; i < bits; ++i) stream_bytes(packed + 64 * i, load_bytes(batch + 64 * i));
}

template <int bits>
void stream_unpacked(const uint8_t* packed, uint8_t* codes) {
  alignas(64) uint8_t batch[8 * kWords];
  unpack_batch<bits>(packed, batch);
  for (int i = 0; i < 8; ++i) stream_bytes(codes + 64 * i, load_bytes(batch + 64 * i));
}

// `count` codes from a byte of the stream on.
template <int bits>
void pack_run(const uint8_t* codes, uint8_t* packed, int64_t count, bool past) {
  int64_t k = 0;
  if (past && reinterpret_cast<uintptr_t>(packed) % 64 == 0) {
    for (; k + 8 * kWords <= count; k += 8 * kWords) stream_packed<bits>(codes + k, packed + k / 8 * bits);
    end_streams();
  }
  // A batch writes up to eight bytes behind its end: the next codes must fill them.
  for (; k + 8 * kWords + 64 <= count; k += 8 * kWords) pack_batch<bits>(codes + k, packed + k / 8 * bits);
  for (; k < count; k += 8) {
    uint64_t word = 0;
    std::memcpy(&word, codes + k, static_cast<size_t>(smaller(8, count - k)));
    word = close_gaps<bits>(word);
    std::memcpy(packed + k / 8 * bits, &word, static_cast<size_t>((smaller(8, count - k) * bits + 7) / 8));
  }
}

template <int bits>
void unpack_run(const uint8_t* packed, uint8_t* codes, int64_t count, bool past) {
  int64_t k = 0;
  if (past && reinterpret_cast<uintptr_t>(codes) % 64 == 0) {
    for (; k + 8 * kWords + 64 <= count; k += 8 * kWords) stream_unpacked<bits>(packed + k / 8 * bits, codes + k);
    end_streams();
  }
  for (; k + 8 * kWords + 64 <= count; k += 8 * kWords) unpack_batch<bits>(packed + k / 8 * bits, codes + k);
  for (; k < count; k += 8) {
    uint64_t word = 0;
    std::memcpy(&word, packed + k / 8 * bits, static_cast<size_t>((smaller(8, count - k) * bits + 7) / 8));
    word = open_gaps<bits>(word);
    std::memcpy(codes + k, &word, static_cast<size_t>(smaller(8, count - k)));
  }
}

// Calls run(first byte of codes, first byte of the stream, codes) for runs that fill the streams.
template <class Run>
void each_run(BitStreams streams, int threads, const Run& run) {
  if (streams.codes % 8 == 0) streams = {1, streams.rows * streams.codes, streams.bits};
  const int64_t cuts = (streams.codes + kChunk - 1) / kChunk;
  const int64_t rows = cuts > 1 ? 1 : kChunk / (streams.codes > 0 ? streams.codes : 1);
  const int64_t batches = (streams.rows + rows - 1) / rows;
  parallel_for(threads, batches * cuts, [&](int64_t chunk, int) {
    const int64_t start = chunk % cuts * kChunk, count = smaller(kChunk, streams.codes - start);
    const int64_t first = chunk / cuts * rows;
    for (int64_t row = first; row < first + rows && row < streams.rows; ++row)
      run(row * streams.codes + start, row * streams.row_bytes() + start / 8 * streams.bits, count);
  });
}

}  // namespace

void pack_bits(const BitStreams& streams, const uint8_t* codes, uint8_t* packed, int threads) {
  const bool past = streams.rows * streams.row_bytes() >= kStreamFrom;
  with_bits(streams.bits, [&](auto bits) {
    each_run(streams, threads, [&](int64_t code, int64_t byte, int64_t count) {
      if constexpr (bits == 8) {
        std::memcpy(packed + byte, codes + code, static_cast<size_t>(count));
      } else {
        pack_run<bits>(codes + code, packed + byte, count, past);
      }
    });
  });
}

void unpack_bits(const BitStreams& streams, const uint8_t* packed, uint8_t* codes, int threads) {
  const bool past = streams.rows * streams.codes >= kStreamFrom;
  with_bits(streams.bits, [&](auto bits) {
    each_run(streams, threads, [&](int64_t code, int64_t byte, int64_t count) {
      if constexpr (bits == 8) {
        std::memcpy(codes + code, packed + byte, static_cast<size_t>(count));
      } else {
        unpack_run<bits>(packed + byte, codes + code, count, past);
      }
    });
  });
}

}  // namespace bw::BW_ISA
