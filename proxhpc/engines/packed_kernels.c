// Kernels of PackedLlama, for processors with AVX512-BF16. DIM is the size of a head.
//
// Matrices in 8 bits are stored as panels of 32 columns: their scales, the sums to start from, and
// [inputs / 4][32][4] weights, so that one instruction multiplies four numbers for 16 columns.
// Keys are stored as [head][slot / 16][DIM / 2][slot % 16][2], values as [head][slot / 2][DIM][2]:
// so one instruction multiplies pairs of numbers for 16 keys, or for 16 columns of a value.
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

typedef uint16_t bf16;
enum { LANES = 16, PAIRS = DIM / 2, TILE = 8, KEYS = 32, BLOCK = 64, PANEL = 2 * LANES };

static inline __m512 load(const bf16 *x) {
    __m256i half = _mm256_loadu_si256((const __m256i *)x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

static inline void store(bf16 *x, __m512 value) {
    _mm256_storeu_si256((__m256i *)x, (__m256i)_mm512_cvtneps_pbh(value));
}

static inline __m512bh both(const bf16 *pair) {
    int32_t bits;
    __builtin_memcpy(&bits, pair, sizeof bits);
    return (__m512bh)_mm512_set1_epi32(bits);
}

// 0 below -104.
static inline __m512 exponential(__m512 x) {
    // The second operand is the result if one is not a number.
    x = _mm512_min_ps(_mm512_set1_ps(88), _mm512_max_ps(_mm512_set1_ps(-104), x));
    __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    __m512 whole = _mm512_roundscale_ps(power, 0);
    __m512 f = _mm512_sub_ps(power, whole);
    static const float taylor[] = {.00961813f, .05550411f, .24022651f, .69314718f, 1};
    __m512 sum = _mm512_set1_ps(.00133336f);
    for (int n = 0; n < 5; n++) sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(taylor[n]));
    return _mm512_scalef_ps(sum, whole);
}

// 1 / the root of the mean square of a row.
static inline float root(const bf16 *x, long size, float eps) {
    __m512 sum = _mm512_setzero_ps();
    for (long n = 0; n < size; n += LANES) {
        __m512 value = load(x + n);
        sum = _mm512_fmadd_ps(value, value, sum);
    }
    return 1 / sqrtf(_mm512_reduce_add_ps(sum) / size + eps);
}

void norm(const bf16 *x, long rows, long size, float eps, bf16 *out) {
    for (; rows--; x += size, out += size) {
        __m512 scale = _mm512_set1_ps(root(x, size, eps));
        for (long n = 0; n < size; n += LANES) store(out + n, _mm512_mul_ps(load(x + n), scale));
    }
}

static inline __m512 silu(__m512 gate, __m512 up) {
    __m512 power = exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate));
    return _mm512_div_ps(_mm512_mul_ps(gate, up), _mm512_add_ps(_mm512_set1_ps(1), power));
}

// silu(gate) * up, of rows that hold both.
void gated(const bf16 *x, long rows, long size, bf16 *out) {
    for (; rows--; x += 2 * size, out += size)
        for (long n = 0; n < size; n += LANES) store(out + n, silu(load(x + n), load(x + size + n)));
}

// Bytes around 128 of a row; returns the value of 1, not a number if one of the row is none.
static float quantize(const bf16 *x, long size, uint8_t *out) {
    __m512i most = _mm512_setzero_si512(), sign = _mm512_set1_epi32(0x7fffffff);
    for (long n = 0; n < size; n += LANES)  // as integers, since then NaN is the largest
        most = _mm512_max_epu32(most, _mm512_and_si512((__m512i)load(x + n), sign));
    uint32_t bits = _mm512_reduce_max_epu32(most);
    float top;
    __builtin_memcpy(&top, &bits, sizeof top);
    __m512 scale = _mm512_set1_ps(127 / top);
    for (long n = 0; n < size; n += LANES) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load(x + n), scale));
        whole = _mm512_add_epi32(whole, _mm512_set1_epi32(128));
        _mm_storeu_si128((__m128i *)(out + n), _mm512_cvtepi32_epi8(whole));
    }
    return top / 127;
}

// Rows, normed if eps > 0, times a matrix of `panels`; `width` is that of a row of `out`.
enum { PLAIN, ADDED, GATED };
static inline __attribute__((always_inline)) void multiply(
        const bf16 *x, long rows, long size, float eps, const char *panels, long width, int kind,
        bf16 *out) {
    uint8_t bytes[BLOCK][size] __attribute__((aligned(64)));
    float units[BLOCK];
    for (long row = 0; row < rows; row++, x += size) {
        units[row] = quantize(x, size, bytes[row]);
        if (eps > 0) units[row] *= root(x, size, eps);
    }
    for (long column = 0; column < width; column += kind == GATED ? LANES : PANEL) {
        __m512 left_scale = _mm512_loadu_ps(panels), right_scale = _mm512_loadu_ps(panels + 64);
        __m512i left_start = _mm512_loadu_si512(panels + 128);
        __m512i right_start = _mm512_loadu_si512(panels + 192);
        panels += 256;
        for (long row = 0; row < rows; row += TILE) {
            __m512i sum[TILE][2];
            for (int n = 0; n < TILE; n++) sum[n][0] = left_start, sum[n][1] = right_start;
            for (long k = 0; k < size; k += 4) {
                __m512i left = _mm512_loadu_si512(panels + k * PANEL);
                __m512i right = _mm512_loadu_si512(panels + k * PANEL + 64);
#pragma GCC unroll 8
                for (int n = 0; n < TILE; n++) {
                    __m512i four = (__m512i)both((const bf16 *)(bytes[row + n] + k));
                    sum[n][0] = _mm512_dpbusd_epi32(sum[n][0], four, left);
                    sum[n][1] = _mm512_dpbusd_epi32(sum[n][1], four, right);
                }
            }
            for (int n = 0; n < TILE; n++) {
                bf16 *to = out + (row + n) * width + column;
                __m512 unit = _mm512_set1_ps(units[row + n]);
                __m512 a = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[n][0]), _mm512_mul_ps(unit, left_scale));
                __m512 b = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[n][1]), _mm512_mul_ps(unit, right_scale));
                if (kind == GATED) {
                    store(to, silu(a, b));
                    continue;
                }
                store(to, kind == ADDED ? _mm512_add_ps(a, load(to)) : a);
                store(to + LANES, kind == ADDED ? _mm512_add_ps(b, load(to + LANES)) : b);
            }
        }
        panels += size * PANEL;
    }
}

// `rows` is a multiple of TILE in the functions below.
static inline long block(long rows) { return rows < BLOCK ? rows : BLOCK; }

void project(const bf16 *x, long rows, long size, float eps, const char *panels, long width,
             bf16 *out) {
    for (long row = 0; row < rows; row += BLOCK)
        multiply(x + row * size, block(rows - row), size, eps, panels, width, PLAIN, out + row * width);
}

// Add the products to `out`.
void add(const bf16 *x, long rows, long size, const char *panels, long width, bf16 *out) {
    for (long row = 0; row < rows; row += BLOCK)
        multiply(x + row * size, block(rows - row), size, 0, panels, width, ADDED, out + row * width);
}

// Add to x what two matrices make of its normed rows, with `inner` numbers between them.
void feed(bf16 *x, long rows, long size, float eps, const char *gate_up, long inner,
          const char *down) {
    bf16 hidden[BLOCK][inner] __attribute__((aligned(64)));
    for (long row = 0; row < rows; row += BLOCK, x += BLOCK * size) {
        multiply(x, block(rows - row), size, eps, gate_up, inner, GATED, hidden[0]);
        multiply(hidden[0], block(rows - row), inner, 0, down, size, ADDED, x);
    }
}

// `turn` has DIM cosines, each twice, and DIM sines of alternating sign.
static inline void rotate(const bf16 *x, const float *turn, bf16 *out) {
    for (int n = 0; n < DIM; n += LANES) {
        __m512 value = load(x + n), swapped = _mm512_permute_ps(value, 0xB1);
        __m512 sines = _mm512_mul_ps(swapped, _mm512_loadu_ps(turn + DIM + n));
        store(out + n, _mm512_fmadd_ps(value, _mm512_loadu_ps(turn + n), sines));
    }
}

// Store the values of a row, or of two rows whose slots are a pair.
static inline void put_values(const bf16 *value, const bf16 *next, long slot, bf16 *out) {
    out += slot / 2 * 2 * DIM;
    if (!next)
        for (int n = 0; n < DIM; n++) out[2 * n + slot % 2] = value[n];
    else
        for (int n = 0; n < DIM; n += LANES) {
            __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(value + n)));
            __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(next + n)));
            _mm512_storeu_si512(out + 2 * n, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

// Store keys, rotated, and values of rows; `width` is from one row to the next, in numbers.
void put(const bf16 *key, const bf16 *value, long width, long rows, long heads, const long *at,
         const float *turns, const long *slot, long slots, bf16 *keys, bf16 *values) {
    for (long row = 0; row < rows; row++, key += width, value += width) {
        int odd = slot[row] % 2, first = !odd && row + 1 < rows && slot[row + 1] == slot[row] + 1;
        int stored = odd && row && slot[row - 1] == slot[row] - 1;
        for (long head = 0; head < heads; head++) {
            bf16 turned[DIM];
            rotate(key + head * DIM, turns + at[row] * 2 * DIM, turned);
            bf16 *k = keys + head * slots * DIM + slot[row] / LANES * LANES * DIM;
            for (int n = 0; n < PAIRS; n++)
                __builtin_memcpy(k + (n * LANES + slot[row] % LANES) * 2, turned + 2 * n, 4);
            const bf16 *v = value + head * DIM;
            if (!stored) put_values(v, first ? v + width : 0, slot[row], values + head * slots * DIM);
        }
    }
}

// Queries of TILE rows, the first of which sees `first` + 1 of the keys.
static void tile(const bf16 (*query)[DIM], const bf16 *keys, const bf16 *values, long first,
                 long count, long width, bf16 *out) {
    float scores[TILE][count] __attribute__((aligned(64))), sums[TILE];
    bf16 weights[TILE][count] __attribute__((aligned(64)));
    for (long k = 0; k < count; k += KEYS, keys += KEYS * DIM) {
        __m512 sum[TILE][2] = {};
        for (int n = 0; n < PAIRS; n++) {
            __m512bh left = (__m512bh)_mm512_loadu_si512(keys + n * 2 * LANES);
            __m512bh right = (__m512bh)_mm512_loadu_si512(keys + (PAIRS + n) * 2 * LANES);
#pragma GCC unroll 8
            for (int row = 0; row < TILE; row++) {
                __m512bh pair = both(query[row] + 2 * n);
                sum[row][0] = _mm512_dpbf16_ps(sum[row][0], pair, left);
                sum[row][1] = _mm512_dpbf16_ps(sum[row][1], pair, right);
            }
        }
        for (int row = 0; row < TILE; row++) {
            _mm512_storeu_ps(scores[row] + k, sum[row][0]);
            _mm512_storeu_ps(scores[row] + k + LANES, sum[row][1]);
        }
    }
    for (int row = 0; row < TILE; row++) {
        long seen = first + row + 1 < count ? first + row + 1 : count;
        for (long k = seen; k < count; k++) scores[row][k] = -INFINITY;
        __m512 most = _mm512_loadu_ps(scores[row]), other = _mm512_loadu_ps(scores[row] + LANES);
        for (long k = KEYS; k < count; k += KEYS) {
            most = _mm512_max_ps(most, _mm512_load_ps(scores[row] + k));
            other = _mm512_max_ps(other, _mm512_load_ps(scores[row] + k + LANES));
        }
        __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(_mm512_max_ps(most, other)));
        __m512 sum = _mm512_setzero_ps();
        for (long k = 0; k < count; k += LANES) {
            __m512 weight = exponential(_mm512_sub_ps(_mm512_load_ps(scores[row] + k), top));
            sum = _mm512_add_ps(sum, weight);
            store(weights[row] + k, weight);
        }
        sums[row] = _mm512_reduce_add_ps(sum);
    }
    for (int d = 0; d < DIM; d += 2 * LANES) {
        __m512 sum[TILE][2] = {};
        for (long k = 0; k < count; k += 2) {
            __m512bh left = (__m512bh)_mm512_loadu_si512(values + k * DIM + 2 * d);
            __m512bh right = (__m512bh)_mm512_loadu_si512(values + k * DIM + 2 * (d + LANES));
#pragma GCC unroll 8
            for (int row = 0; row < TILE; row++) {
                __m512bh pair = both(weights[row] + k);
                sum[row][0] = _mm512_dpbf16_ps(sum[row][0], pair, left);
                sum[row][1] = _mm512_dpbf16_ps(sum[row][1], pair, right);
            }
        }
        for (int row = 0; row < TILE; row++) {
            __m512 scale = _mm512_set1_ps(1 / sums[row]);
            store(out + row * width + d, _mm512_mul_ps(sum[row][0], scale));
            store(out + row * width + d + LANES, _mm512_mul_ps(sum[row][1], scale));
        }
    }
}

// Causal attention of `rows` rows, a multiple of TILE, from `position` on; keys from `slot` on.
void attend(const bf16 *query, long width, long rows, long heads, const long *at,
            const float *turns, long position, long slot, long size, long slots, const bf16 *keys,
            const bf16 *values, bf16 *out) {
    for (long head = 0; head < heads; head++)
        for (long row = 0; row < rows; row += TILE) {
            long first = position + row, count = (first + TILE + KEYS - 1) / KEYS * KEYS;
            long offset = (head * slots + slot) * DIM, place = row * heads * DIM + head * DIM;
            bf16 turned[TILE][DIM];
            for (int n = 0; n < TILE; n++)
                rotate(query + (row + n) * width + head * DIM, turns + at[row + n] * 2 * DIM, turned[n]);
            tile(turned, keys + offset, values + offset, first, count < size ? count : size,
                 heads * DIM, out + place);
        }
}
