/* What both kinds of attention share: the queries that a thread takes at once, and the softmax of their scores, in powers of 2. */
#pragma once

#include "common.h"

#define LOG2_E 1.44269504f /* by which scores are multiplied before */
enum { QUERIES = 48 };

typedef struct {
    int64_t one, rows; /* which head of which image, how many queries */
    const float *from; /* the first query, in qkv[batch][tokens][3][heads][width] */
    float *to;         /* its result, in y[batch][tokens][heads][width] */
} Piece;

/* Piece `index` of all heads' queries. */
INLINE Piece piece_of(int64_t index, const float *qkv, float *y, int64_t tokens, int64_t heads, int64_t width) {
    int64_t pieces = ceil_div(tokens, QUERIES), one = index / pieces, first = index % pieces * QUERIES;
    int64_t row = one / heads * tokens + first, head = one % heads * width, left = tokens - first;
    Piece piece = {one, left < QUERIES ? left : QUERIES, qkv + row * 3 * heads * width + head, y + row * heads * width + head};
    return piece;
}

/* 2^x for x <= 0 to 2e-7 of its value; below -126 as at it; NaN stays NaN. A polynomial of degree 5 on [-1/2, 1/2], fitted as that of
   GELU, with its exponent raised by the nearest whole number. */
INLINE __m256 power8(__m256 x) {
    x = _mm256_max_ps(_mm256_set1_ps(-126.0f), x); /* the second operand is kept where one is NaN */
    __m256 whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm256_sub_ps(x, whole);
    __m256 p = _mm256_set1_ps(0.00132647261f);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.00967151299f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.0555073358f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.240222424f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.693147004f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    __m256i raised = _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23));
    return _mm256_castsi256_ps(raised); /* of NaN the whole part is 2^31, whose lowest bits are 0: its bits stay */
}

/* 2^(score - largest) in place; gives 1 / their sum. Past the last key it is 2^-126, which no sum notices, and the values there are 0. */
INLINE float powers(float *scores, int64_t keys, int64_t padded) {
    __m256 largest = _mm256_set1_ps(-__builtin_inff()), sums = _mm256_setzero_ps();
    for (int64_t i = keys; i < padded; i++) scores[i] = -__builtin_inff();
    for (int64_t i = 0; i < padded; i += 8) largest = _mm256_max_ps(largest, _mm256_loadu_ps(scores + i));
    __m256 top = _mm256_set1_ps(max8(largest));
    for (int64_t i = 0; i < padded; i += 8) {
        __m256 e = power8(_mm256_sub_ps(_mm256_loadu_ps(scores + i), top));
        _mm256_storeu_ps(scores + i, e);
        sums = _mm256_add_ps(sums, e);
    }
    return 1.0f / sum8(sums);
}
