/* What the kernels share: sizes, the split of work, functions of eight floats.

   Every result is computed by one thread in one order that depends on neither the number of threads nor the other rows, so that equal
   inputs give equal bits in any batch, on any number of threads. */
#pragma once

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
/* Also in library.py: raise with every change of a function's arguments. */
enum { VERSION = 3 };

#define INLINE static inline __attribute__((always_inline))

enum { PANEL = 16, TILE = 6, BLOCK = 264 }; /* outputs a panel of weights; rows a register tile; rows that stay in the cache */
enum { AFTER_NOTHING = 0, AFTER_GELU = 1, AFTER_ADD = 2 };

/* Ends a row's part of an inner loop: its two sums are in registers now, so the compiler does not gather all rows' inputs first. */
#define SETTLE(SUM) __asm__ volatile("" : "+x"((SUM)[0]), "+x"((SUM)[1]))

typedef struct {
    int64_t first, last;
} Range;

/* The part of `count` that is `index`'s of `parts`, one contiguous piece. */
INLINE Range share(int64_t count, int64_t index, int64_t parts) {
    Range range = {count * index / parts, count * (index + 1) / parts};
    return range;
}

INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* A panel's part of the results: what a thread does in one go. */
typedef struct {
    Range rows;
    int64_t panel, columns; /* which panel, and how many of its columns exist */
} Unit;

INLINE int64_t panels_of(int64_t outputs) { return ceil_div(outputs, PANEL); }

/* How many pieces the rows are cut into: as few as stay in the cache, so that weights are fetched seldom, but work for every thread. */
INLINE int64_t blocks(int64_t rows, int64_t outputs, int threads) {
    int64_t fewest = ceil_div(rows, BLOCK), wanted = ceil_div(8 * (int64_t)threads, panels_of(outputs));
    int64_t most = ceil_div(rows, 4 * TILE);
    return wanted <= fewest ? fewest : wanted < most ? wanted : most > fewest ? most : fewest;
}

/* Blocks of rows are equal pieces of whole tiles, the last with the rest; a block sees all panels before the next one. */
INLINE Unit unit_of(int64_t index, int64_t rows, int64_t outputs, int64_t count) {
    int64_t panels = panels_of(outputs), left = outputs - index % panels * PANEL;
    Range range = share(ceil_div(rows, TILE), index / panels, count);
    range.first *= TILE;
    range.last = range.last * TILE < rows ? range.last * TILE : rows;
    Unit unit = {range, index % panels, left < PANEL ? left : PANEL};
    return unit;
}

/* While a tile of a unit is computed, its part of the next panel is fetched from memory: `bytes` of them, which begin at `next`. */
INLINE void fetch(const void *next, int64_t bytes, Range rows, int64_t row) {
    Range part = share(ceil_div(bytes, 64), (row - rows.first) / TILE, ceil_div(rows.last - rows.first, TILE));
    for (int64_t line = part.first; line < part.last; line++) _mm_prefetch((const char *)next + 64 * line, _MM_HINT_T1);
}

/* GELU, exact form: x (1 + erf(x / sqrt 2)) / 2. erf(z) is z P(z^2) / Q(z^2), of degree 5 and 5, for |z| up to 4, where it is 1 in
   float32; the coefficients are a weighted least squares fit to 2.5e-8 of its value. */
INLINE __m256 gelu8(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f), most = _mm256_set1_ps(4.0f), least = _mm256_set1_ps(-4.0f);
    __m256 z = _mm256_mul_ps(x, _mm256_set1_ps(0.70710678f));
    z = _mm256_max_ps(least, _mm256_min_ps(most, z)); /* NaN is kept: both give their second operand */
    __m256 s = _mm256_mul_ps(z, z);
    __m256 p = _mm256_set1_ps(1.98687417e-06f);
    p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(0.000284557347f));
    p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(0.00388290291f));
    p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(0.0531003624f));
    p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(0.193534568f));
    p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(1.12837911f));
    __m256 q = _mm256_set1_ps(3.74206938e-05f);
    q = _mm256_fmadd_ps(q, s, _mm256_set1_ps(0.00118546747f));
    q = _mm256_fmadd_ps(q, s, _mm256_set1_ps(0.0152063565f));
    q = _mm256_fmadd_ps(q, s, _mm256_set1_ps(0.115345664f));
    q = _mm256_fmadd_ps(q, s, _mm256_set1_ps(0.504848123f));
    q = _mm256_fmadd_ps(q, s, _mm256_set1_ps(1.0f));
    __m256 erf = _mm256_div_ps(_mm256_mul_ps(z, p), q);
    erf = _mm256_max_ps(_mm256_set1_ps(-1.0f), _mm256_min_ps(one, erf));
    __m256 half = _mm256_mul_ps(x, _mm256_set1_ps(0.5f));
    return _mm256_fmadd_ps(half, erf, half);
}

INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

INLINE float max8(__m256 v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/* Rows of eight floats as columns. */
INLINE void transpose8(__m256 *v) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]), a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
            b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xEE);
        }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

/* CALL(rows) with the number of rows as a constant, so that a tile's sums stay in registers. */
#define FOR_ROWS(COUNT, CALL)                                                                                                     \
    switch (COUNT) {                                                                                                              \
    case 1: CALL(1); break;                                                                                                       \
    case 2: CALL(2); break;                                                                                                       \
    case 3: CALL(3); break;                                                                                                       \
    case 4: CALL(4); break;                                                                                                       \
    case 5: CALL(5); break;                                                                                                       \
    default: CALL(6);                                                                                                             \
    }

/* A tile of results leaves the registers: `y` holds TILE x PANEL of them, row stride `stride`; `count` columns exist. */
INLINE void leave(__m256 low, __m256 high, float *y, int64_t count, int after) {
    if (after == AFTER_GELU) low = gelu8(low), high = gelu8(high);
    if (count == PANEL) {
        if (after == AFTER_ADD) low = _mm256_add_ps(low, _mm256_loadu_ps(y)), high = _mm256_add_ps(high, _mm256_loadu_ps(y + 8));
        _mm256_storeu_ps(y, low);
        _mm256_storeu_ps(y + 8, high);
        return;
    }
    float all[PANEL];
    _mm256_storeu_ps(all, low);
    _mm256_storeu_ps(all + 8, high);
    for (int64_t i = 0; i < count; i++) y[i] = after == AFTER_ADD ? y[i] + all[i] : all[i];
}
