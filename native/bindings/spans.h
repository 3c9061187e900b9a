// Buffers as Python hands them over, and scratch memory of one call.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <tuple>

#include "bindings/checks.h"
#include "core/weight.h"

namespace bw {

// (address, bytes); (0, 0) where there is nothing.
using Span = std::tuple<uintptr_t, int64_t>;

inline Buffer buffer(Span span) { return {std::get<0>(span), std::get<1>(span)}; }

inline Float float_type(int code) {
  require(code >= 0 && code <= 2, "the float type is 0 (fp32), 1 (fp16) or 2 (bf16)");
  return static_cast<Float>(code);
}

inline int64_t float_bytes(Float type) { return type == Float::f32 ? 4 : 2; }

template <class T>
T* elements(Span span, int64_t count, const char* name) {
  return buffer(span).as<T>(product(count, sizeof(T)), name);
}

inline bool given(Span span) { return std::get<0>(span) != 0; }

struct FreeMemory {
  void operator()(void* p) const { std::free(p); }
};

// `count` elements, aligned to a cache line.
template <class T>
std::unique_ptr<T, FreeMemory> scratch(int64_t count) {
  const size_t bytes = (static_cast<size_t>(product(count, sizeof(T))) + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes ? bytes : 64);
  if (!memory) throw std::bad_alloc();
  return std::unique_ptr<T, FreeMemory>(static_cast<T*>(memory));
}

}  // namespace bw
