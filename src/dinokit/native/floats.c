/* y = x W' + b in float32, weights packed once into panels of 16 outputs; layer norm. */
#include "singles.h"

EXPORT int dinokit_version(void) { return VERSION; }

INLINE void tile(int rows, const float *x, int64_t inputs, const float *panel, const float *bias, float *y, int64_t stride,
                 int64_t count, int after) {
    __m256 sum[TILE][2];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) sum[i][0] = _mm256_loadu_ps(bias), sum[i][1] = _mm256_loadu_ps(bias + 8);
    singles(rows, x, inputs, panel, inputs, sum);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) leave(sum[i][0], sum[i][1], y + i * stride, count, after);
}

/* One panel of weight[outputs][inputs], each output multiplied by its factor; what is past the last output is zero. */
static void pack(const float *weight, const float *factor, float *panel, int64_t output, int64_t outputs, int64_t inputs) {
    for (int64_t half = 0; half < PANEL; half += 8) {
        int64_t k = 0;
        for (; k + 8 <= inputs; k += 8) {
            __m256 v[8];
            for (int64_t i = 0; i < 8; i++) {
                int64_t o = output + half + i;
                v[i] = o < outputs ? _mm256_mul_ps(_mm256_loadu_ps(weight + o * inputs + k), _mm256_set1_ps(factor[o]))
                                   : _mm256_setzero_ps();
            }
            transpose8(v);
            for (int64_t i = 0; i < 8; i++) _mm256_storeu_ps(panel + (k + i) * PANEL + half, v[i]);
        }
        for (; k < inputs; k++)
            for (int64_t i = 0; i < 8; i++) {
                int64_t o = output + half + i;
                panel[k * PANEL + half + i] = o < outputs ? weight[o * inputs + k] * factor[o] : 0.0f;
            }
    }
}

/* panels[outputs / 16][inputs][16] of weight[outputs][inputs] times its factors. */
EXPORT void dinokit_pack_f32(const float *weight, const float *factor, float *panels, int64_t outputs, int64_t inputs, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t p = 0; p < panels_of(outputs); p++) pack(weight, factor, panels + p * inputs * PANEL, p * PANEL, outputs, inputs);
}

/* With `weight` the panels are not there yet: each is packed when it is used, into what `panels` then is, one panel's room a thread.
   `bias` has as many values as the panels; `y` is read only if `after` is AFTER_ADD. */
EXPORT void dinokit_linear_f32(const float *x, const float *weight, const float *factor, float *panels, const float *bias, float *y,
                               int64_t rows, int64_t outputs, int64_t inputs, int after, int threads) {
    int64_t count = blocks(rows, outputs, threads);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t index = 0; index < count * panels_of(outputs); index++) {
        Unit unit = unit_of(index, rows, outputs, count);
        float *panel = panels + (weight ? (int64_t)omp_get_thread_num() : unit.panel) * inputs * PANEL;
        const float *b = bias + unit.panel * PANEL;
        if (weight) pack(weight, factor, panel, unit.panel * PANEL, outputs, inputs);
        for (int64_t i = unit.rows.first; i < unit.rows.last; i += TILE) {
            const float *from = x + i * inputs;
            float *to = y + i * outputs + unit.panel * PANEL;
            if (!weight) fetch(panel + inputs * PANEL, inputs * PANEL * (int64_t)sizeof *panel, unit.rows, i);
#define CALL(N) tile(N, from, inputs, panel, b, to, outputs, unit.columns, after)
            FOR_ROWS(unit.rows.last - i, CALL)
#undef CALL
        }
    }
}

/* Layer norm of each row over its `width` values, population variance. */
EXPORT void dinokit_norm_f32(const float *x, const float *weight, const float *bias, float *y, int64_t rows, int64_t width, float eps,
                             int threads) {
    int64_t whole = width / 8 * 8;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) {
        const float *from = x + r * width;
        float *to = y + r * width;
        __m256 sums = _mm256_setzero_ps(), squares = _mm256_setzero_ps();
        for (int64_t i = 0; i < whole; i += 8) sums = _mm256_add_ps(sums, _mm256_loadu_ps(from + i));
        float mean = sum8(sums);
        for (int64_t i = whole; i < width; i++) mean += from[i];
        mean /= (float)width;
        for (int64_t i = 0; i < whole; i += 8) {
            __m256 off = _mm256_sub_ps(_mm256_loadu_ps(from + i), _mm256_set1_ps(mean));
            squares = _mm256_fmadd_ps(off, off, squares);
        }
        float variance = sum8(squares);
        for (int64_t i = whole; i < width; i++) variance += (from[i] - mean) * (from[i] - mean);
        float scale = 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(variance / (float)width + eps)));
        for (int64_t i = 0; i < whole; i += 8) {
            __m256 off = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(from + i), _mm256_set1_ps(mean)), _mm256_set1_ps(scale));
            _mm256_storeu_ps(to + i, _mm256_fmadd_ps(off, _mm256_loadu_ps(weight + i), _mm256_loadu_ps(bias + i)));
        }
        for (int64_t i = whole; i < width; i++) to[i] = (from[i] - mean) * scale * weight[i] + bias[i];
    }
}
