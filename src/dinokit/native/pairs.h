/* Sums of products of 16-bit integers, two inputs an instruction, in 32 bits. */
#pragma once

#include "common.h"

enum { LEVELS_16 = 2047 };

/* part[row] = the sum of q[row][k] panel[k][16] over `count` inputs, a multiple of 2; a panel is [count / 2][16][2]. */
INLINE void pairs(int rows, const int16_t *q, int64_t stride, const int16_t *panel, int64_t count, __m256i (*part)[2]) {
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) part[i][0] = part[i][1] = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int64_t k = 0; k < count; k += 2, panel += 2 * PANEL) {
        __m256i low = _mm256_loadu_si256((const __m256i *)panel), high = _mm256_loadu_si256((const __m256i *)(panel + PANEL));
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            __m256i two = _mm256_set1_epi32(*(const int32_t *)(q + i * stride + k));
            part[i][0] = _mm256_add_epi32(part[i][0], _mm256_madd_epi16(two, low));
            part[i][1] = _mm256_add_epi32(part[i][1], _mm256_madd_epi16(two, high));
            SETTLE(part[i]);
        }
    }
}

/* Sixteen values times `inverse` (one for all, or one each) as 16-bit integers in their order, NaN as anything. */
INLINE __m256i rounded16(__m256 low, __m256 high, __m256 inverse_low, __m256 inverse_high) {
    __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(low, inverse_low)), b = _mm256_cvtps_epi32(_mm256_mul_ps(high, inverse_high));
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
}

INLINE __m256i limited16(__m256i x) {
    return _mm256_max_epi16(_mm256_min_epi16(x, _mm256_set1_epi16(LEVELS_16)), _mm256_set1_epi16(-LEVELS_16));
}

/* What a value of largest magnitude `largest` is divided by; 0 for nothing but zeros. */
INLINE float inverse_of(float scale) { return scale > 1e-37f ? 1.0f / scale : 0.0f; }

/* Rounded to even, as the vector instructions do. */
INLINE int32_t nearest(float x) { return _mm_cvtss_si32(_mm_set_ss(x)); }

/* A row of `width` values as 12-bit integers, then zeros up to `padded`; gives their scale, NaN where a value is not finite. */
INLINE float quantise_16(const float *x, int16_t *q, int64_t width, int64_t padded) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 largest = _mm256_setzero_ps(), bads = largest;
    int64_t i = 0;
    for (; i + 8 <= width; i += 8) {
        __m256 v = _mm256_loadu_ps(x + i);
        largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, v));
        bads = _mm256_fmadd_ps(v, _mm256_setzero_ps(), bads);
    }
    float most = max8(largest), bad = sum8(bads);
    for (; i < width; i++) {
        float size = __builtin_fabsf(x[i]);
        most = size > most ? size : most, bad += x[i] * 0.0f;
    }
    float scale = most / LEVELS_16, inverse = inverse_of(scale);
    __m256 times = _mm256_set1_ps(inverse);
    for (i = 0; i + 16 <= width; i += 16) {
        __m256i all = rounded16(_mm256_loadu_ps(x + i), _mm256_loadu_ps(x + i + 8), times, times);
        _mm256_storeu_si256((__m256i *)(q + i), limited16(all));
    }
    for (; i < width; i++) q[i] = (int16_t)nearest(x[i] * inverse);
    for (; i < padded; i++) q[i] = 0;
    return scale + bad;
}
