/* The kernels for processors with AVX2 and FMA: 12 of 16 registers hold the sums of 3 rows. */
#if defined(__x86_64__) && defined(__GNUC__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define FORM AVX2
#define LANES 8
#define ROWS 3
#include "kernels_of.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
