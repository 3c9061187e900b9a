// A thread pool in which work is claimed, never assigned.
//
// A job is a number of chunks. The caller and the workers take chunks from one counter until none is left; the caller
// then waits only for chunks that somebody has claimed. A worker that the operating system does not run therefore costs
// nothing: the caller does its share. Idle workers look for work for a short time, then sleep.
#pragma once

#include <cstdint>
#include <type_traits>

namespace bw {

// Work on one chunk; `lane` is below the number of threads of the job and belongs to one thread at a time.
using ChunkFunction = void (*)(void* context, int64_t chunk, int lane);

// Runs `chunks` chunks on at most `threads` threads, the caller's included. Calls from several threads at once are
// allowed: one gets the workers, the others do their own work; a chunk may call it again. Rethrows the first exception
// of a chunk when every chunk that was begun has ended.
void parallel(int threads, int64_t chunks, ChunkFunction function, void* context);

// The same for a callable `body(chunk, lane)`.
template <class Body>
void parallel_for(int threads, int64_t chunks, Body&& body) {
  parallel(
      threads, chunks,
      [](void* context, int64_t chunk, int lane) {
        (*static_cast<std::remove_reference_t<Body>*>(context))(chunk, lane);
      },
      &body);
}

// The most threads that a job may use.
constexpr int kMaxThreads = 256;

}  // namespace bw
