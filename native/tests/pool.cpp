// The pool under attack: many callers, more threads than processors, exceptions, calls within calls, a fork.
#include "core/pool.h"

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/check.h"

#if defined(__linux__) && !defined(__SANITIZE_THREAD__)
#define BW_FORKS 1
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace bw::test {
namespace {

struct Job {
  int threads;
  int64_t chunks;
  int64_t bad = -1;  // the chunk that throws
  bool nested = false;
};

// Every chunk runs once (at most once where one throws), on lanes that no two threads share.
void run(const Job& job) {
  std::vector<std::atomic<int>> ran(static_cast<size_t>(job.chunks));
  std::vector<std::atomic<int>> lanes(static_cast<size_t>(job.threads));
  std::vector<int64_t> written(static_cast<size_t>(job.chunks));  // plain: ThreadSanitizer sees a missing order
  bool thrown = false;
  try {
    parallel_for(job.threads, job.chunks, [&](int64_t chunk, int lane) {
      check(lane >= 0 && lane < job.threads, "a lane is below the number of threads");
      check(lanes[static_cast<size_t>(lane)].fetch_add(1) == 0, "a lane belongs to one thread at a time");
      ran[static_cast<size_t>(chunk)].fetch_add(1);
      written[static_cast<size_t>(chunk)] = chunk + 1;
      if (job.nested) {
        std::atomic<int64_t> sum{0};
        parallel_for(job.threads, 3, [&](int64_t inner, int) { sum += inner; });
        check(sum == 3, "a call within a chunk is served");
      }
      lanes[static_cast<size_t>(lane)].fetch_sub(1);
      if (chunk == job.bad) throw std::runtime_error("bad chunk");
    });
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  check(thrown == (job.bad >= 0), "the exception of a chunk reaches the caller");
  for (int64_t chunk = 0; chunk < job.chunks; ++chunk) {
    const int times = ran[static_cast<size_t>(chunk)].load();
    check(times == 1 || (thrown && times == 0), "a chunk runs once");
    check(written[static_cast<size_t>(chunk)] == (times ? chunk + 1 : 0), "what a chunk wrote is seen by the caller");
  }
}

Job some(Random& random) {
  Job job{static_cast<int>(random.number(1, 9)), random.number(0, 40)};
  if (job.chunks && random.number(0, 4) == 0) job.bad = random.number(0, job.chunks - 1);
  job.nested = random.number(0, 4) == 0;
  return job;
}

void many_callers(Random& random, int turns) {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 5; ++caller) {
    callers.emplace_back([turns, seed = random.number(0, 1 << 30)] {
      Random own(static_cast<uint64_t>(seed));
      for (int turn = 0; turn < turns; ++turn) {
        run(some(own));
        // Beyond the time that idle workers look for work, so that they sleep and are woken.
        if (own.number(0, 20) == 0) std::this_thread::sleep_for(std::chrono::microseconds(own.number(0, 200)));
      }
    });
  }
  for (auto& caller : callers) caller.join();
}

void child_of_a_fork() {
#if defined(BW_FORKS)
  run({4, 16});
  const pid_t child = fork();
  if (child == 0) {
    run({4, 16});
    _exit(0);
  }
  int status = 1;
  waitpid(child, &status, 0);
  check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child of a fork has a pool");
#endif
}

}  // namespace

void test_pool(Random& random, int turns) {
  run({4, 0});
  for (int turn = 0; turn < turns; ++turn) run(some(random));
  run({kMaxThreads, 2000});
  many_callers(random, turns);
  child_of_a_fork();
}

}  // namespace bw::test
