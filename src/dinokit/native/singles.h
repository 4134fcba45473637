/* Sums of products of floats, one input an instruction. */
#pragma once

#include "common.h"

/* sum[row] += x[row][k] panel[k][16] over `count` inputs; rows are `stride` apart.

   A register tile is 6 rows by 16 outputs: 12 sums, 2 weights and 1 input are 15 of AVX2's 16 registers. Inputs are read in place. */
INLINE void singles(int rows, const float *x, int64_t stride, const float *panel, int64_t count, __m256 (*sum)[2]) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < count; k++, panel += PANEL) {
        __m256 low = _mm256_loadu_ps(panel), high = _mm256_loadu_ps(panel + 8);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            __m256 one = _mm256_broadcast_ss(x + i * stride + k);
            sum[i][0] = _mm256_fmadd_ps(one, low, sum[i][0]);
            sum[i][1] = _mm256_fmadd_ps(one, high, sum[i][1]);
            SETTLE(sum[i]);
        }
    }
}
