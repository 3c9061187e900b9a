#include "core/pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace bw {
namespace {

// How long an idle worker looks for the next job before it sleeps: longer than the gap between two products of one
// decoded token, much shorter than a time slice.
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr uint64_t kClosed = 0xffffffffu;

void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// No signals for the workers, while this lives: a handler that ran in one of them would leave the program's own threads
// asleep in their system calls (Python would answer Ctrl-C late). Faults of an instruction stay with their thread.
class WithoutSignals {
 public:
#if defined(__unix__) || defined(__APPLE__)
  WithoutSignals() {
    sigset_t all;
    sigfillset(&all);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~WithoutSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  WithoutSignals(const WithoutSignals&) = delete;

 private:
  sigset_t before_;
#endif
};

class Pool {
 public:
  static Pool& shared();

  void run(int threads, int64_t chunks, ChunkFunction function, void* context) {
    // A flag, not a mutex: a chunk may ask for the pool again, from the thread that holds it.
    if (busy_.exchange(true)) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk) function(context, chunk, 0);
      return;
    }
    grow(threads - 1);
    const std::exception_ptr error = job(threads, chunks, function, context);
    busy_.store(false);
    if (error) std::rethrow_exception(error);
  }

 private:
  // Returns what a chunk threw; the chunks that nobody had begun by then are left out.
  std::exception_ptr job(int threads, int64_t chunks, ChunkFunction function, void* context) {
    const uint64_t epoch = ++epoch_;
    // Closed before the fields change: a claim that read the old ticket fails.
    ticket_.store(epoch << 32 | kClosed);
    function_.store(function, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    total_.store(static_cast<uint32_t>(chunks), std::memory_order_relaxed);
    helpers_.store(threads - 1, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    failed_.store(false, std::memory_order_relaxed);
    ticket_.store(epoch << 32);
    wake_.fetch_add(1);
    wake_.notify_all();
    work(0);
    await(static_cast<uint32_t>(chunks));
    return failed_.load(std::memory_order_relaxed) ? std::exchange(error_, nullptr) : nullptr;
  }

  // Takes chunks of the present job until none is left.
  void work(int lane) {
    for (;;) {
      uint64_t ticket = ticket_.load();
      const uint64_t next = ticket & kClosed;
      const uint32_t total = total_.load(std::memory_order_relaxed);
      // Asked for every claim, of the job whose ticket this is: a later one may have fewer lanes.
      if (lane > helpers_.load(std::memory_order_relaxed)) return;
      if (next == kClosed || next >= total) return;
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
      // The job cannot end before this chunk does, so its fields stand still from here on.
      run_chunk(static_cast<int64_t>(next), lane);
      if (done_.fetch_add(1) + 1 == total) done_.notify_one();
    }
  }

  // An exception must neither end a worker's thread nor leave the caller's frame while others still read it.
  void run_chunk(int64_t chunk, int lane) {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      function_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), chunk, lane);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }

  // Waits for the chunks that others have claimed.
  void await(uint32_t total) {
    for (int turn = 0; turn < 2000; ++turn) {
      if (done_.load() == total) return;
      relax();
    }
    for (uint32_t seen = done_.load(); seen != total; seen = done_.load()) done_.wait(seen);
  }

  void serve(int lane) {
    uint32_t seen = 0;
    for (;;) {
      work(lane);
      const auto until = std::chrono::steady_clock::now() + kSpin;
      while (wake_.load() == seen) {
        for (int turn = 0; turn < 32; ++turn) relax();
        if (std::chrono::steady_clock::now() > until) {
          wake_.wait(seen);
          break;
        }
      }
      seen = wake_.load();
    }
  }

  // Starts workers; with fewer than wanted, those that there are and the caller do the work.
  void grow(int wanted) {
    if (workers_ >= wanted) return;
    const WithoutSignals inherited;
    try {
      for (; workers_ < wanted; ++workers_) std::thread(&Pool::serve, this, workers_ + 1).detach();
    } catch (...) {
    }
  }

  std::atomic<bool> busy_{false};
  int workers_ = 0;
  uint64_t epoch_ = 0;
  alignas(64) std::atomic<uint64_t> ticket_{kClosed};
  alignas(64) std::atomic<uint32_t> done_{0};
  alignas(64) std::atomic<uint32_t> wake_{0};
  alignas(64) std::atomic<ChunkFunction> function_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<uint32_t> total_{0};
  std::atomic<int> helpers_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // written by the chunk that failed first, read when all are done
};

std::atomic<Pool*> instance{nullptr};

// Threads do not survive a fork: the child starts a pool of its own.
void forget() { instance.store(new Pool); }

Pool& Pool::shared() {
  static std::once_flag once;
  std::call_once(once, [] {
    instance.store(new Pool);
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, forget);
#endif
  });
  return *instance.load();
}

}  // namespace

void parallel(int threads, int64_t chunks, ChunkFunction function, void* context) {
  threads = static_cast<int>(std::min<int64_t>({threads, chunks, kMaxThreads}));
  if (threads <= 1 || chunks >= static_cast<int64_t>(kClosed)) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) function(context, chunk, 0);
    return;
  }
  Pool::shared().run(threads, chunks, function, context);
}

}  // namespace bw
