// Which instruction sets this processor has, of those that this build holds.
#include <vector>

#include "core/table.h"

#if defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace bw {
namespace {

std::vector<const Kernels*> find() {
  std::vector<const Kernels*> found;
#if defined(BW_HAS_avx512)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") &&
      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vpopcntdq") &&
      __builtin_cpu_supports("avx512bf16"))
    found.push_back(&avx512::table());
#endif
#if defined(BW_HAS_avx2)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    found.push_back(&avx2::table());
#endif
#if defined(BW_HAS_neon)
#if defined(__linux__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found.push_back(&neon::table());
#else
  found.push_back(&neon::table());
#endif
#endif
  found.push_back(&scalar::table());
  return found;
}

}  // namespace

const Kernels* const* available(size_t* count) {
  static const std::vector<const Kernels*> tables = find();
  *count = tables.size();
  return tables.data();
}

}  // namespace bw
