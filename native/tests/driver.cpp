// Runs everything compiled without Python, for the sanitizers and for processors that are only emulated here.
//   driver [turns] [seed] [part ...]
// turns: random cases of each part and instruction set. parts: those below, pool, memory; all of them by default.
#include <cstring>

#include "tests/check.h"

int main(int count, char** arguments) {
  using namespace bw::test;
  const int turns = count > 1 ? std::atoi(arguments[1]) : 200;
  const uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1;
  const auto wanted = [&](const char* name) {
    bool named = count <= 3;
    for (int i = 3; i < count; ++i) named = named || std::strcmp(arguments[i], name) == 0;
    return named;
  };
  struct Part {
    const char* name;
    void (*run)(const bw::Kernels&, Random&, int);
  };
  size_t tables;
  const bw::Kernels* const* found = bw::available(&tables);
  const Part parts[] = {
      {"linear", test_linear},   {"bits", test_bits},           {"coded", test_coded},       {"ways", test_ways},
      {"counts", test_counts},   {"terms", test_terms},         {"hadamard", test_hadamard}, {"sweep", test_sweep},
      {"rows", test_rows},       {"attention", test_attention}, {"decode", test_decode},     {"descent", test_descent},
      {"kmeans", test_kmeans},   {"probe", test_probe},         {"trellis", test_trellis},   {"vectors", test_vectors},
      {"nearest", test_nearest}, {"symmetric", test_symmetric},
  };
  for (const Part& each : parts) {
    for (size_t i = 0; i < tables && wanted(each.name); ++i) {
      Random random(seed);  // the same cases for every instruction set
      each.run(*found[i], random, turns);
      std::fflush(stdout);
      std::printf("%s %s: %d cases\n", each.name, found[i]->name, turns);
    }
  }
  Random random(seed);
  if (wanted("pool")) test_pool(random, turns), std::printf("pool: %d rounds\n", turns);
  if (wanted("memory")) test_memory(), std::printf("memory\n");
  return 0;
}
