/* The kernels for processors with AVX-512: 24 of 32 registers hold the sums of 12 rows. */
#if defined(__x86_64__) && defined(__GNUC__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC target("avx512f,prefer-vector-width=512")
#endif
#define FORM AVX512
#define LANES 16
#define ROWS 12
#include "kernels_of.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
