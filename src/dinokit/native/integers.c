/* y = x W' + b with weights and inputs as integers: a scale an output channel, a scale (and zero) a row, sums in 32 bits.

   Two kinds. "i16": 12 bits on both sides in 16-bit integers; "i8": 8-bit weights, 7-bit inputs, so that the sum of two products stays
   in 16 bits, which is all that AVX2's instruction for them has. A row that holds a NaN or an infinity gives NaN. */
#include "pairs.h"

/* 2047 x 2047 x 512 is the largest that fits 31 bits, so sums of 12-bit products go to float after 512 of them. */
enum { SPAN_16 = 512, LEVELS_8 = 127 };

typedef struct {
    float scale, zero; /* an input is scale (integer - zero) */
} Row;

/* Smallest and largest of a row and 0, and NaN in `bad` if any value is not finite. */
INLINE void extent(const float *x, int64_t width, float *low, float *high, float *bad) {
    __m256 lows = _mm256_setzero_ps(), highs = lows, bads = lows;
    int64_t i = 0;
    for (; i + 8 <= width; i += 8) {
        __m256 v = _mm256_loadu_ps(x + i);
        lows = _mm256_min_ps(lows, v), highs = _mm256_max_ps(highs, v);
        bads = _mm256_fmadd_ps(v, _mm256_setzero_ps(), bads);
    }
    *low = -max8(_mm256_sub_ps(_mm256_setzero_ps(), lows)), *high = max8(highs), *bad = sum8(bads);
    for (; i < width; i++) {
        *low = x[i] < *low ? x[i] : *low, *high = x[i] > *high ? x[i] : *high;
        *bad += x[i] * 0.0f;
    }
}

/* From the smallest value (or 0) to the largest (or 0), with an exact 0: one-sided rows, as after GELU, use all levels. */
INLINE Row quantise_8(const float *x, uint8_t *q, int64_t width, int64_t padded) {
    float low, high, bad;
    extent(x, width, &low, &high, &bad);
    float scale = (high - low) / LEVELS_8, inverse = inverse_of(scale);
    int32_t zero = nearest(-low * inverse);
    const __m256i zeros = _mm256_set1_epi32(zero), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    int64_t i = 0;
    for (; i + 32 <= width; i += 32) {
        __m256i part[4];
        for (int j = 0; j < 4; j++) {
            __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i + 8 * j), _mm256_set1_ps(inverse));
            part[j] = _mm256_add_epi32(_mm256_cvtps_epi32(v), zeros);
        }
        __m256i all = _mm256_packus_epi16(_mm256_packs_epi32(part[0], part[1]), _mm256_packs_epi32(part[2], part[3]));
        all = _mm256_min_epu8(_mm256_permutevar8x32_epi32(all, order), _mm256_set1_epi8(LEVELS_8));
        _mm256_storeu_si256((__m256i *)(q + i), all);
    }
    for (; i < width; i++) {
        int32_t level = nearest(x[i] * inverse) + zero;
        q[i] = (uint8_t)(level < 0 ? 0 : level > LEVELS_8 ? LEVELS_8 : level);
    }
    for (; i < padded; i++) q[i] = 0; /* the weights are 0 there too */
    Row row = {scale + bad, (float)zero};
    return row;
}

/* What turns a panel's sums into values. */
typedef struct {
    const float *scales, *totals, *bias; /* a channel: scale, sum of its integers, bias */
} Channels;

/* Row scale x channel scale x (sum - zero x the channel's total) + bias. */
INLINE __m256 real(__m256 sum, Row row, Channels channels, int64_t at) {
    sum = _mm256_fnmadd_ps(_mm256_set1_ps(row.zero), _mm256_loadu_ps(channels.totals + at), sum);
    sum = _mm256_mul_ps(sum, _mm256_loadu_ps(channels.scales + at));
    return _mm256_fmadd_ps(sum, _mm256_set1_ps(row.scale), _mm256_loadu_ps(channels.bias + at));
}

INLINE void tile_16(int rows, const int16_t *q, int64_t inputs, const int16_t *panel, const Row *row, Channels channels, float *y,
                    int64_t stride, int64_t count, int after) {
    float sums[TILE][PANEL] = {{0}};
    for (int64_t start = 0; start < inputs; start += SPAN_16) {
        int64_t end = start + SPAN_16 < inputs ? start + SPAN_16 : inputs;
        __m256i part[TILE][2];
        pairs(rows, q + start, inputs, panel, end - start, part);
        panel += (end - start) * PANEL;
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            __m256 low = _mm256_cvtepi32_ps(part[i][0]), high = _mm256_cvtepi32_ps(part[i][1]);
            low = _mm256_add_ps(low, _mm256_loadu_ps(sums[i])), high = _mm256_add_ps(high, _mm256_loadu_ps(sums[i] + 8));
            if (end < inputs) {
                _mm256_storeu_ps(sums[i], low), _mm256_storeu_ps(sums[i] + 8, high);
            } else {
                leave(real(low, row[i], channels, 0), real(high, row[i], channels, 8), y + i * stride, count, after);
            }
        }
    }
}

INLINE void tile_8(int rows, const uint8_t *q, int64_t inputs, const int8_t *panel, const Row *row, Channels channels, float *y,
                   int64_t stride, int64_t count, int after) {
    __m256i sum[TILE][2];
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int64_t k = 0; k < inputs; k += 4, panel += 4 * PANEL) {
        __m256i low = _mm256_loadu_si256((const __m256i *)panel), high = _mm256_loadu_si256((const __m256i *)(panel + 2 * PANEL));
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            __m256i four = _mm256_set1_epi32(*(const int32_t *)(q + i * inputs + k));
            sum[i][0] = _mm256_add_epi32(sum[i][0], _mm256_madd_epi16(_mm256_maddubs_epi16(four, low), ones));
            sum[i][1] = _mm256_add_epi32(sum[i][1], _mm256_madd_epi16(_mm256_maddubs_epi16(four, high), ones));
            SETTLE(sum[i]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
        leave(real(_mm256_cvtepi32_ps(sum[i][0]), row[i], channels, 0), real(_mm256_cvtepi32_ps(sum[i][1]), row[i], channels, 8),
              y + i * stride, count, after);
}

INLINE Channels channels_of(Channels all, int64_t panel) {
    Channels one = {all.scales + panel * PANEL, all.totals + panel * PANEL, all.bias + panel * PANEL};
    return one;
}

/* panels[outputs / 16][padded / 2][16][2] with `padded` inputs a multiple of 2; `q` has room for rows x padded, `row` for the rows;
   `scales`, `totals` and `bias` have as many values as the panels. */
EXPORT void dinokit_linear_i16(const float *x, int16_t *q, Row *row, const int16_t *panels, const float *scales, const float *totals,
                               const float *bias, float *y, int64_t rows, int64_t outputs, int64_t inputs, int after, int threads) {
    int64_t padded = ceil_div(inputs, 2) * 2;
    Channels all = {scales, totals, bias};
    int64_t count = blocks(rows, outputs, threads);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) row[r] = (Row){quantise_16(x + r * inputs, q + r * padded, inputs, padded), 0.0f};
#pragma omp for schedule(static)
        for (int64_t index = 0; index < count * panels_of(outputs); index++) {
            Unit unit = unit_of(index, rows, outputs, count);
            const int16_t *panel = panels + unit.panel * padded * PANEL;
            Channels channels = channels_of(all, unit.panel);
            for (int64_t i = unit.rows.first; i < unit.rows.last; i += TILE) {
                float *to = y + i * outputs + unit.panel * PANEL;
                fetch(panel + padded * PANEL, padded * PANEL * (int64_t)sizeof *panel, unit.rows, i);
#define CALL(N) tile_16(N, q + i * padded, padded, panel, row + i, channels, to, outputs, unit.columns, after)
                FOR_ROWS(unit.rows.last - i, CALL)
#undef CALL
            }
        }
    }
}

/* As above, with panels[outputs / 16][padded / 4][16][4]. */
EXPORT void dinokit_linear_i8(const float *x, uint8_t *q, Row *row, const int8_t *panels, const float *scales, const float *totals,
                              const float *bias, float *y, int64_t rows, int64_t outputs, int64_t inputs, int after, int threads) {
    int64_t padded = ceil_div(inputs, 4) * 4;
    Channels all = {scales, totals, bias};
    int64_t count = blocks(rows, outputs, threads);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) row[r] = quantise_8(x + r * inputs, q + r * padded, inputs, padded);
#pragma omp for schedule(static)
        for (int64_t index = 0; index < count * panels_of(outputs); index++) {
            Unit unit = unit_of(index, rows, outputs, count);
            const int8_t *panel = panels + unit.panel * padded * PANEL;
            Channels channels = channels_of(all, unit.panel);
            for (int64_t i = unit.rows.first; i < unit.rows.last; i += TILE) {
                float *to = y + i * outputs + unit.panel * PANEL;
                fetch(panel + padded * PANEL, padded * PANEL * (int64_t)sizeof *panel, unit.rows, i);
#define CALL(N) tile_8(N, q + i * padded, padded, panel, row + i, channels, to, outputs, unit.columns, after)
                FOR_ROWS(unit.rows.last - i, CALL)
#undef CALL
            }
        }
    }
}
