// Runs everything compiled without Python, for the sanitizers and for processors that are only emulated here.
//   driver [turns] [seed] [part]
// turns: random cases of each part and instruction set. part: linear, variants, bits, pool or memory; all of them by default.
#include <cstring>

#include "tests/check.h"

int main(int count, char** arguments) {
  using namespace bw::test;
  const int turns = count > 1 ? std::atoi(arguments[1]) : 200;
  const uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1;
  const char* part = count > 3 ? arguments[3] : "";
  const auto wanted = [&](const char* name) { return !*part || std::strcmp(part, name) == 0; };
  struct Part {
    const char* name;
    void (*run)(const bw::Kernels&, Random&, int);
  };
  size_t tables;
  const bw::Kernels* const* found = bw::available(&tables);
  for (const Part& each : {Part{"linear", test_linear}, Part{"variants", test_variants}, Part{"bits", test_bits}}) {
    for (size_t i = 0; i < tables && wanted(each.name); ++i) {
      Random random(seed);  // the same cases for every instruction set
      each.run(*found[i], random, turns);
      std::printf("%s %s: %d cases\n", each.name, found[i]->name, turns);
    }
  }
  Random random(seed);
  if (wanted("pool")) test_pool(random, turns), std::printf("pool: %d rounds\n", turns);
  if (wanted("memory")) test_memory(), std::printf("memory\n");
  return 0;
}
