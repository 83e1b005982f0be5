// Kernels of PackedLlama in bfloat16, for processors with AVX512-BF16. DIM is the size of a head.
//
// Keys are stored as [head][slot / 16][DIM / 2][slot % 16][2], values as [head][slot / 2][DIM][2]:
// so one instruction multiplies pairs of numbers for 16 keys, or for 16 columns of a value.
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

typedef uint16_t bf16;
enum { LANES = 16, PAIRS = DIM / 2, TILE = 8, KEYS = 32 };

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

void norm(const bf16 *x, long rows, long size, float eps, bf16 *out) {
    for (; rows--; x += size, out += size) {
        __m512 sum = _mm512_setzero_ps();
        for (long n = 0; n < size; n += LANES) {
            __m512 value = load(x + n);
            sum = _mm512_fmadd_ps(value, value, sum);
        }
        __m512 scale = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(sum) / size + eps));
        for (long n = 0; n < size; n += LANES) store(out + n, _mm512_mul_ps(load(x + n), scale));
    }
}

// silu(gate) * up, of rows that hold both.
void gated(const bf16 *x, long rows, long size, bf16 *out) {
    const __m512 one = _mm512_set1_ps(1);
    for (; rows--; x += 2 * size, out += size)
        for (long n = 0; n < size; n += LANES) {
            __m512 gate = load(x + n), up = load(x + size + n);
            __m512 below = _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate)));
            store(out + n, _mm512_div_ps(_mm512_mul_ps(gate, up), below));
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
