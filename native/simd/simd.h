// The few vector operations that the kernels are written in, for the instruction set that this file is compiled for.
//
// Every file under kernels/ is compiled once for each instruction set, with BW_ISA defined as its name. All vectors
// have 16 lanes (64 bytes): one row of a weight tile per 32-bit lane.
//   U8x64   64 bytes; lane r holds 4 neighbouring inputs of row r
//   I32x16  16 integers
//   F32x16  16 floats
#pragma once

#include <cstdint>

#include "core/half.h"

#define BW_JOIN_(a, b) a##b
#define BW_JOIN(a, b) BW_JOIN_(a, b)
#define BW_IS_avx512 1
#define BW_IS_avx2 2
#define BW_IS_neon 3
#define BW_IS_scalar 4
#define BW_IS BW_JOIN(BW_IS_, BW_ISA)

#if BW_IS == BW_IS_avx512
#include "simd/avx512.h"
#elif BW_IS == BW_IS_avx2
#include "simd/avx2.h"
#elif BW_IS == BW_IS_neon
#include "simd/neon.h"
#else
#include "simd/scalar.h"
#endif
