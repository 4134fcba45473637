/* softmax(q k' / sqrt(width)) v of every head, float32, from the rows that the qkv layer gives to the rows that the next one reads.

   Keys and values of a head are packed as weights are; then a few queries at a time see all keys, so no row of scores is ever split. */
#include "singles.h"
#include "softmax.h"

/* y (rows x 16) = x (rows x inputs, row stride `stride`) times a packed panel. */
INLINE void product(int rows, const float *x, int64_t stride, const float *panel, int64_t inputs, float *y, int64_t to) {
    __m256 sum[TILE][2];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
    singles(rows, x, stride, panel, inputs, sum);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) _mm256_storeu_ps(y + i * to, sum[i][0]), _mm256_storeu_ps(y + i * to + 8, sum[i][1]);
}

static void products(int64_t rows, const float *x, int64_t stride, const float *panel, int64_t inputs, float *y, int64_t to) {
    for (int64_t i = 0; i < rows; i += TILE) {
#define CALL(N) product(N, x + i * stride, stride, panel, inputs, y + i * to, to)
        FOR_ROWS(rows - i, CALL)
#undef CALL
    }
}

/* One head's keys, scaled, as panels of 16 tokens; its values, `apart` further on in each row, as panels of 16 channels. */
static void pack(const float *from, int64_t stride, int64_t tokens, int64_t padded, int64_t width, float scale, float *keys, float *values,
                 int64_t apart) {
    for (int64_t t = 0; t < padded; t += 8)
        for (int64_t c = 0; c < width; c += 8) {
            __m256 v[8];
            float *to = values + (c / PANEL * padded + t) * PANEL + c % PANEL;
            for (int i = 0; i < 8; i++) {
                int there = t + i < tokens;
                const float *row = from + (t + i) * stride + c;
                v[i] = there ? _mm256_mul_ps(_mm256_loadu_ps(row), _mm256_set1_ps(scale)) : _mm256_setzero_ps();
                _mm256_storeu_ps(to + i * PANEL, there ? _mm256_loadu_ps(row + apart) : _mm256_setzero_ps());
            }
            transpose8(v);
            for (int i = 0; i < 8; i++) _mm256_storeu_ps(keys + (t / PANEL * width + c + i) * PANEL + t % PANEL, v[i]);
        }
}

/* qkv[batch][tokens][3][heads][width] -> y[batch][tokens][heads][width]; `width` is a multiple of 16.
   `packed` has room for batch x heads x 2 x padded tokens x width, `scores` for threads x 48 x padded tokens. */
EXPORT void dinokit_attention_f32(const float *qkv, float *y, float *packed, float *scores, int64_t batch, int64_t tokens, int64_t heads,
                                  int64_t width, float scale, int threads) {
    int64_t padded = ceil_div(tokens, PANEL) * PANEL, all = heads * width, stride = 3 * all, pieces = ceil_div(tokens, QUERIES);
    int64_t columns = width / PANEL;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t one = 0; one < batch * heads; one++) {
            const float *from = qkv + one / heads * tokens * stride + one % heads * width;
            float *keys = packed + one * 2 * padded * width, *values = keys + padded * width;
            pack(from + all, stride, tokens, padded, width, scale * LOG2_E, keys, values, all);
        }
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < batch * heads * pieces; unit++) {
            Piece piece = piece_of(unit, qkv, y, tokens, heads, width);
            int64_t rows = piece.rows;
            const float *from = piece.from;
            float *to = piece.to;
            const float *keys = packed + piece.one * 2 * padded * width, *values = keys + padded * width;
            float *mine = scores + (int64_t)omp_get_thread_num() * QUERIES * padded, inverse[QUERIES];
            for (int64_t p = 0; p < padded / PANEL; p++)
                products(rows, from, stride, keys + p * width * PANEL, width, mine + p * PANEL, padded);
            for (int64_t r = 0; r < rows; r++) inverse[r] = powers(mine + r * padded, tokens, padded);
            for (int64_t p = 0; p < columns; p++)
                products(rows, mine, padded, values + p * padded * PANEL, padded, to + p * PANEL, all);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < width; c += 8)
                    _mm256_storeu_ps(to + r * all + c, _mm256_mul_ps(_mm256_loadu_ps(to + r * all + c), _mm256_set1_ps(inverse[r])));
        }
    }
}
