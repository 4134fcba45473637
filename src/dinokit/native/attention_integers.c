/* softmax(q k' / sqrt(width)) v of every head with integers in both products: 12 bits for queries and keys, a scale a token, and for
   values, a scale a channel; 15 bits for the softmax.

   The sum of a row's softmax is brought to at most a million, so that its products with values fit 31 bits whatever the row. */
#include "pairs.h"
#include "softmax.h"

enum { MILLION = 1000000, LEVELS_SOFTMAX = 32767, MOST_WIDTH = 256 };

typedef struct {
    int16_t *keys, *values;  /* [padded / 16][width / 2][16][2], [width / 16][padded / 2][16][2] */
    float *by_token, *by_channel; /* scales of keys, of values */
} Head;

static Head head_of(int64_t one, int16_t *packed, float *scales, int64_t padded, int64_t width) {
    Head head = {packed + one * 2 * padded * width, packed + (one * 2 + 1) * padded * width, scales + one * (padded + width),
                 scales + one * (padded + width) + padded};
    return head;
}

/* One head's keys as panels of 16 tokens, pairs of channels side by side. */
static void pack_keys(const float *from, int64_t stride, int64_t tokens, int64_t padded, int64_t width, Head head) {
    int16_t row[MOST_WIDTH] = {0};
    for (int64_t t = 0; t < padded; t++) {
        int there = t < tokens;
        head.by_token[t] = there ? quantise_16(from + t * stride, row, width, width) : 0.0f;
        for (int64_t c = 0; c < width; c += 2) {
            int16_t *to = head.keys + (t / PANEL * width + c) * PANEL + t % PANEL * 2;
            to[0] = there ? row[c] : 0, to[1] = there ? row[c + 1] : 0;
        }
    }
}

/* One head's values as panels of 16 channels, pairs of tokens side by side. */
static void pack_values(const float *from, int64_t stride, int64_t tokens, int64_t padded, int64_t width, Head head) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    for (int64_t c = 0; c < width; c += PANEL) {
        __m256 largest[2], bad[2], times[2];
        for (int j = 0; j < 2; j++) largest[j] = bad[j] = _mm256_setzero_ps();
        for (int64_t t = 0; t < tokens; t++)
            for (int j = 0; j < 2; j++) {
                __m256 v = _mm256_loadu_ps(from + t * stride + c + 8 * j);
                largest[j] = _mm256_max_ps(largest[j], _mm256_andnot_ps(sign, v));
                bad[j] = _mm256_fmadd_ps(v, _mm256_setzero_ps(), bad[j]);
            }
        for (int j = 0; j < 2; j++) {
            float scales[8], inverse[8];
            _mm256_storeu_ps(scales, _mm256_mul_ps(largest[j], _mm256_set1_ps(1.0f / LEVELS_16)));
            for (int i = 0; i < 8; i++) inverse[i] = inverse_of(scales[i]);
            times[j] = _mm256_loadu_ps(inverse);
            _mm256_storeu_ps(head.by_channel + c + 8 * j, _mm256_add_ps(_mm256_loadu_ps(scales), bad[j]));
        }
        for (int64_t t = 0; t < padded; t += 2) {
            __m256i two[2];
            for (int i = 0; i < 2; i++) {
                const float *v = from + (t + i) * stride + c;
                two[i] = t + i < tokens ? limited16(rounded16(_mm256_loadu_ps(v), _mm256_loadu_ps(v + 8), times[0], times[1]))
                                        : _mm256_setzero_si256();
            }
            __m256i low = _mm256_unpacklo_epi16(two[0], two[1]), high = _mm256_unpackhi_epi16(two[0], two[1]);
            __m256i *to = (__m256i *)(head.values + (c / PANEL * padded + t) * PANEL);
            _mm256_storeu_si256(to, _mm256_permute2x128_si256(low, high, 0x20));
            _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(low, high, 0x31));
        }
    }
}

/* y[row][16] = the sums of pairs, times a factor a row and a factor a column. */
INLINE void product(int rows, const int16_t *q, int64_t stride, const int16_t *panel, int64_t count, const float *by_row,
                    const float *by_column, float *y, int64_t to) {
    __m256i part[TILE][2];
    pairs(rows, q, stride, panel, count, part);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        __m256 row = _mm256_set1_ps(by_row[i]);
        __m256 low = _mm256_mul_ps(_mm256_cvtepi32_ps(part[i][0]), _mm256_mul_ps(row, _mm256_loadu_ps(by_column)));
        __m256 high = _mm256_mul_ps(_mm256_cvtepi32_ps(part[i][1]), _mm256_mul_ps(row, _mm256_loadu_ps(by_column + 8)));
        _mm256_storeu_ps(y + i * to, low);
        _mm256_storeu_ps(y + i * to + 8, high);
    }
}

static void products(int64_t rows, const int16_t *q, int64_t stride, const int16_t *panel, int64_t count, const float *by_row,
                     const float *by_column, float *y, int64_t to) {
    for (int64_t i = 0; i < rows; i += TILE) {
#define CALL(N) product(N, q + i * stride, stride, panel, count, by_row + i, by_column, y + i * to, to)
        FOR_ROWS(rows - i, CALL)
#undef CALL
    }
}

/* The softmax of a row of scores as integers; gives what one of them is worth, so that all together are 1. */
INLINE float softmax(float *scores, int16_t *q, int64_t tokens, int64_t padded) {
    float inverse = powers(scores, tokens, padded), levels = MILLION * inverse;
    levels = levels < LEVELS_SOFTMAX ? levels : LEVELS_SOFTMAX;
    __m256 times = _mm256_set1_ps(levels);
    __m256i total = _mm256_setzero_si256();
    for (int64_t i = 0; i < padded; i += 16) {
        __m256i all = rounded16(_mm256_loadu_ps(scores + i), _mm256_loadu_ps(scores + i + 8), times, times);
        _mm256_storeu_si256((__m256i *)(q + i), all);
        total = _mm256_add_epi32(total, _mm256_madd_epi16(all, _mm256_set1_epi16(1)));
    }
    return 1.0f / sum8(_mm256_cvtepi32_ps(total)) + 0.0f * inverse; /* NaN where a score was */
}

/* As dinokit_attention_f32, `width` at most 256. `packed` has room for batch x heads x 2 x padded tokens x width integers, `scales` for
   batch x heads x (padded tokens + width), `scores` and `q` for threads x 48 x padded tokens (and not less than 48 x width). */
EXPORT void dinokit_attention_i16(const float *qkv, float *y, int16_t *packed, float *scales, float *scores, int16_t *q, int64_t batch,
                                  int64_t tokens, int64_t heads, int64_t width, float scale, int threads) {
    int64_t padded = ceil_div(tokens, PANEL) * PANEL, all = heads * width, stride = 3 * all, pieces = ceil_div(tokens, QUERIES);
    int64_t room = QUERIES * (padded > width ? padded : width);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t one = 0; one < batch * heads; one++) {
            const float *from = qkv + one / heads * tokens * stride + one % heads * width;
            pack_keys(from + all, stride, tokens, padded, width, head_of(one, packed, scales, padded, width));
            pack_values(from + 2 * all, stride, tokens, padded, width, head_of(one, packed, scales, padded, width));
        }
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < batch * heads * pieces; unit++) {
            Piece piece = piece_of(unit, qkv, y, tokens, heads, width);
            int64_t rows = piece.rows;
            const float *from = piece.from;
            float *to = piece.to;
            Head head = head_of(piece.one, packed, scales, padded, width);
            float *mine = scores + (int64_t)omp_get_thread_num() * room, worth[QUERIES];
            int16_t *integers = q + (int64_t)omp_get_thread_num() * room;
            for (int64_t r = 0; r < rows; r++) worth[r] = quantise_16(from + r * stride, integers + r * width, width, width) * scale * LOG2_E;
            for (int64_t p = 0; p < padded / PANEL; p++)
                products(rows, integers, width, head.keys + p * width * PANEL, width, worth, head.by_token + p * PANEL, mine + p * PANEL,
                         padded);
            for (int64_t r = 0; r < rows; r++) worth[r] = softmax(mine + r * padded, integers + r * padded, tokens, padded);
            for (int64_t p = 0; p < width / PANEL; p++)
                products(rows, integers, padded, head.values + p * padded * PANEL, padded, worth, head.by_channel + p * PANEL,
                         to + p * PANEL, all);
        }
    }
}
