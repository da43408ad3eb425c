/* The passes of the codec that have to be fast: quantise, sparsify, pack, entropy-code.
 *
 * Every function here has a twin in torch or numpy that gives the same bytes (tests hold them
 * together), so nothing may be contracted or reassociated: built with -ffp-contract=off, and no
 * sum of floats is taken here. Called through ctypes, which releases the GIL.
 */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ABI 1
#define MAX_THREADS 16
#define GRAIN (1 << 16) /* values below which a second thread costs more than it brings */

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define CLONES
#endif
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAVE_COMPRESS 1
#endif

int sfl_abi(void) { return ABI; }

/* ---- threads ---------------------------------------------------------------------------- */

typedef void (*Body)(void *context, int64_t begin, int64_t end);

typedef struct {
    Body body;
    void *context;
    int64_t begin, end;
} Share;

static void *run_share(void *argument) {
    Share *share = argument;
    share->body(share->context, share->begin, share->end);
    return NULL;
}

/* body over [0, n) in pieces that begin at multiples of `unit`. */
static void spread(int64_t n, int64_t unit, int64_t grain, int threads, Body body, void *context) {
    Share shares[MAX_THREADS];
    pthread_t workers[MAX_THREADS];
    int started[MAX_THREADS] = {0};
    int64_t units = (n + unit - 1) / unit;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if ((int64_t)threads > n / grain) threads = (int)(n / grain);
    if ((int64_t)threads > units) threads = (int)units;
    if (threads < 1) threads = 1;
    for (int t = 0; t < threads; t++) {
        int64_t end = units * (t + 1) / threads * unit;
        shares[t] = (Share){body, context, units * t / threads * unit, end < n ? end : n};
    }
    for (int t = 1; t < threads; t++)
        started[t] = pthread_create(&workers[t], NULL, run_share, &shares[t]) == 0;
    run_share(&shares[0]);
    for (int t = 1; t < threads; t++) {
        if (started[t])
            pthread_join(workers[t], NULL);
        else
            run_share(&shares[t]);
    }
}

/* ---- keyed random bits -------------------------------------------------------------------- */

/* 32 bits from a counter: two multiply-xorshift rounds (constants: hash-prospector). */
static inline __attribute__((always_inline)) uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x21f0aaadu;
    x ^= x >> 15;
    x *= 0xd35a2d97u;
    x ^= x >> 15;
    return x;
}

/* Uniform in [0, 1), a multiple of 2^-24. */
static inline __attribute__((always_inline)) float uniform(uint32_t key, uint32_t index) {
    return (float)(int32_t)(mix(index * 0x9e3779b9u + key) >> 8) * 0x1p-24f;
}

static inline __attribute__((always_inline)) float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline __attribute__((always_inline)) uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/* ---- absmax quantisation in blocks ----------------------------------------------------------- */

typedef struct {
    const float *values;
    int64_t n, block;
    int32_t levels; /* codes reach from 0 to 2 * levels, the middle is zero */
    int32_t stochastic;
    uint32_t key;
    uint16_t *scales; /* bf16, rounded up so that no code is clipped */
    uint8_t *codes;
    int32_t bad; /* set where a value is not finite */
} Blocks;

CLONES static void quantise_blocks(void *context, int64_t begin, int64_t end) {
    Blocks *job = context;
    const float levels = (float)job->levels;
    const float top = (float)(2 * job->levels);
    for (int64_t start = begin; start < end; start += job->block) {
        const int64_t size = (end - start < job->block) ? end - start : job->block;
        const float *x = job->values + start;
        uint8_t *codes = job->codes + start;
        uint32_t largest = 0; /* magnitudes order as their bits do */
        for (int64_t i = 0; i < size; i++) {
            uint32_t bits = as_bits(x[i]) & 0x7fffffffu;
            largest = bits > largest ? bits : largest;
        }
        if (largest >= 0x7f800000u) job->bad = 1;
        uint32_t scale = (as_bits(as_float(largest) / levels) + 0xffffu) & 0xffff0000u;
        if (scale < 0x03800000u) scale = 0x03800000u; /* 2^-120: its reciprocal is finite */
        if (scale >= 0x7f800000u) scale = 0x7f7f0000u;
        job->scales[start / job->block] = (uint16_t)(scale >> 16);
        const float inverse = 1.0f / as_float(scale);
        if (job->stochastic) {
            for (int64_t i = 0; i < size; i++) {
                float u = x[i] * inverse + uniform(job->key, (uint32_t)(start + i));
                u += levels;
                u = u < 0.0f ? 0.0f : u;
                u = u > top ? top : u;
                codes[i] = (uint8_t)(int32_t)u;
            }
        } else {
            for (int64_t i = 0; i < size; i++) {
                float u = x[i] * inverse + 0.5f;
                u += levels;
                u = u < 0.0f ? 0.0f : u;
                u = u > top ? top : u;
                codes[i] = (uint8_t)(int32_t)u;
            }
        }
    }
}

/* Returns 1 where a value is NaN or infinite. */
int sfl_quantise_blocks(const float *values, int64_t n, int64_t block, int32_t levels,
                        int32_t stochastic, uint32_t key, uint16_t *scales, uint8_t *codes,
                        int32_t threads) {
    Blocks job = {values, n, block, levels, stochastic, key, scales, codes, 0};
    spread(n, block, GRAIN, threads, quantise_blocks, &job);
    return job.bad;
}

typedef struct {
    const uint8_t *codes;
    const uint16_t *scales;
    int64_t block;
    int32_t levels;
    float *values;
} Unblocks;

CLONES static void dequantise_blocks(void *context, int64_t begin, int64_t end) {
    Unblocks *job = context;
    for (int64_t start = begin; start < end; start += job->block) {
        const int64_t size = (end - start < job->block) ? end - start : job->block;
        const float scale = as_float((uint32_t)job->scales[start / job->block] << 16);
        const uint8_t *codes = job->codes + start;
        float *out = job->values + start;
        for (int64_t i = 0; i < size; i++)
            out[i] = (float)((int32_t)codes[i] - job->levels) * scale;
    }
}

void sfl_dequantise_blocks(const uint8_t *codes, const uint16_t *scales, int64_t n, int64_t block,
                           int32_t levels, float *values, int32_t threads) {
    Unblocks job = {codes, scales, block, levels, values};
    spread(n, block, GRAIN, threads, dequantise_blocks, &job);
}

/* ---- one step for the whole tensor ------------------------------------------------------------- */

typedef struct {
    const float *values;
    float inverse;
    int32_t stochastic;
    uint32_t key;
    uint8_t *codes; /* 1..255, zero is 128 */
} Grid;

CLONES static void quantise_grid(void *context, int64_t begin, int64_t end) {
    Grid *job = context;
    const float inverse = job->inverse;
    const float *values = job->values;
    uint8_t *codes = job->codes;
    const uint32_t key = job->key;
    if (job->stochastic) {
        for (int64_t i = begin; i < end; i++) {
            float u = values[i] * inverse + uniform(key, (uint32_t)i);
            u += 128.0f;
            u = u < 1.0f ? 1.0f : u;
            u = u > 255.0f ? 255.0f : u;
            codes[i] = (uint8_t)(int32_t)u;
        }
    } else {
        for (int64_t i = begin; i < end; i++) {
            float u = values[i] * inverse + 0.5f;
            u += 128.0f;
            u = u < 1.0f ? 1.0f : u;
            u = u > 255.0f ? 255.0f : u;
            codes[i] = (uint8_t)(int32_t)u;
        }
    }
}

void sfl_quantise_grid(const float *values, int64_t n, float inverse, int32_t stochastic,
                       uint32_t key, uint8_t *codes, int32_t threads) {
    Grid job = {values, inverse, stochastic, key, codes};
    spread(n, 64, GRAIN, threads, quantise_grid, &job);
}

typedef struct {
    const uint8_t *codes;
    float step;
    int32_t dithered; /* the noise that was added before rounding is taken away */
    uint32_t key;
    float *values;
} Ungrid;

CLONES static void dequantise_grid(void *context, int64_t begin, int64_t end) {
    Ungrid *job = context;
    const uint8_t *codes = job->codes;
    float *values = job->values;
    const float step = job->step;
    const uint32_t key = job->key;
    if (job->dithered) {
        for (int64_t i = begin; i < end; i++) {
            float u = (float)((int32_t)codes[i] - 128) - uniform(key, (uint32_t)i);
            u += 0.5f;
            values[i] = u * step;
        }
    } else {
        for (int64_t i = begin; i < end; i++) values[i] = (float)((int32_t)codes[i] - 128) * step;
    }
}

void sfl_dequantise_grid(const uint8_t *codes, int64_t n, float step, int32_t dithered,
                         uint32_t key, float *values, int32_t threads) {
    Ungrid job = {codes, step, dithered, key, values};
    spread(n, 64, GRAIN, threads, dequantise_grid, &job);
}

/* ---- packing ----------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *in;
    uint8_t *out;
    int64_t n; /* codes */
    int32_t bits;
} Pack;

/* Eight codes make `bits` bytes, the first code lowest. */
CLONES static void pack_bits(void *context, int64_t begin, int64_t end) {
    Pack *job = context;
    const int32_t bits = job->bits;
    for (int64_t i = begin; i < end; i += 8) {
        uint64_t word = 0;
        const int64_t size = end - i < 8 ? end - i : 8;
        if (size == 8)
            for (int j = 0; j < 8; j++) word |= (uint64_t)job->in[i + j] << (bits * j);
        else
            for (int j = 0; j < size; j++) word |= (uint64_t)job->in[i + j] << (bits * j);
        uint8_t *out = job->out + i / 8 * bits;
        const int64_t bytes = (size * bits + 7) / 8;
        for (int64_t j = 0; j < bytes; j++) out[j] = (uint8_t)(word >> (8 * j));
    }
}

void sfl_pack_bits(const uint8_t *codes, int64_t n, int32_t bits, uint8_t *out, int32_t threads) {
    Pack job = {codes, out, n, bits};
    spread(n, 8, GRAIN, threads, pack_bits, &job);
}

CLONES static void unpack_bits(void *context, int64_t begin, int64_t end) {
    Pack *job = context;
    const int32_t bits = job->bits;
    const uint64_t mask = (1u << bits) - 1;
    for (int64_t i = begin; i < end; i += 8) {
        const int64_t size = end - i < 8 ? end - i : 8;
        const uint8_t *in = job->in + i / 8 * bits;
        const int64_t bytes = (size * bits + 7) / 8;
        uint64_t word = 0;
        for (int64_t j = 0; j < bytes; j++) word |= (uint64_t)in[j] << (8 * j);
        for (int64_t j = 0; j < size; j++) job->out[i + j] = (uint8_t)((word >> (bits * j)) & mask);
    }
}

void sfl_unpack_bits(const uint8_t *in, int64_t n, int32_t bits, uint8_t *codes, int32_t threads) {
    Pack job = {in, codes, n, bits};
    spread(n, 8, GRAIN, threads, unpack_bits, &job);
}

typedef struct {
    const uint8_t *in;
    uint8_t *out;
    int64_t n;
    int32_t levels, group;
    const uint8_t *table; /* of unpacking: 256 x group codes */
} Radix;

/* `group` codes make one byte in base `levels`, the first code least. */
CLONES static void pack_radix(void *context, int64_t begin, int64_t end) {
    Radix *job = context;
    const int32_t group = job->group, levels = job->levels;
    const int64_t whole = job->n / group; /* bytes of `group` codes each */
    int64_t i = begin;
    if (group == 2) {
        for (; i < end && i < whole; i++)
            job->out[i] = (uint8_t)(job->in[2 * i] + levels * job->in[2 * i + 1]);
    } else if (group == 5) {
        for (; i < end && i < whole; i++) {
            const uint8_t *in = job->in + 5 * i;
            job->out[i] = (uint8_t)(in[0] + levels * (in[1] + levels * (in[2] + levels * (in[3] + levels * in[4]))));
        }
    }
    for (; i < end; i++) {
        int32_t value = 0;
        for (int32_t j = group - 1; j >= 0; j--) {
            int64_t at = i * group + j;
            value = value * levels + (at < job->n ? job->in[at] : 0);
        }
        job->out[i] = (uint8_t)value;
    }
}

void sfl_pack_radix(const uint8_t *codes, int64_t n, int32_t levels, int32_t group, uint8_t *out,
                    int32_t threads) {
    Radix job = {codes, out, n, levels, group, NULL};
    spread((n + group - 1) / group, 64, GRAIN, threads, pack_radix, &job);
}

static void unpack_radix(void *context, int64_t begin, int64_t end) {
    Radix *job = context;
    const int32_t group = job->group;
    const int64_t whole = job->n / group;
    for (int64_t i = begin; i < end; i++) {
        const uint8_t *codes = job->table + (int64_t)job->in[i] * group;
        const int32_t size = i < whole ? group : (int32_t)(job->n - whole * group);
        for (int32_t j = 0; j < size; j++) job->out[i * group + j] = codes[j];
    }
}

void sfl_unpack_radix(const uint8_t *in, int64_t n, int32_t levels, int32_t group, uint8_t *codes,
                      int32_t threads) {
    uint8_t table[256 * 8];
    for (int32_t byte = 0; byte < 256; byte++) {
        int32_t value = byte;
        for (int32_t j = 0; j < group; j++) {
            table[byte * group + j] = (uint8_t)(value % levels);
            value /= levels;
        }
    }
    Radix job = {in, codes, n, levels, group, table};
    spread((n + group - 1) / group, 64, GRAIN, threads, unpack_radix, &job);
}

/* ---- sparsification -------------------------------------------------------------------------------- */

#define BINS 4096 /* of a magnitude's exponent and its four leading bits */

static int compare_bits(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Bits of the k-th largest magnitude of n values (1 <= k <= n). */
static uint32_t kth_magnitude(const float *values, int64_t n, int64_t k) {
    uint32_t counts[4][BINS];
    memset(counts, 0, sizeof counts);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int j = 0; j < 4; j++) counts[j][(as_bits(values[i + j]) & 0x7fffffffu) >> 19]++;
    for (; i < n; i++) counts[0][(as_bits(values[i]) & 0x7fffffffu) >> 19]++;
    int64_t above = 0, inside = 0;
    uint32_t bin = BINS;
    while (bin > 0) {
        bin--;
        inside = (int64_t)counts[0][bin] + counts[1][bin] + counts[2][bin] + counts[3][bin];
        if (above + inside >= k) break;
        above += inside;
    }
    uint32_t *found = malloc((size_t)inside * sizeof *found);
    if (!found) return bin << 19;
    int64_t taken = 0;
    for (i = 0; i < n && taken < inside; i++) {
        uint32_t bits = as_bits(values[i]) & 0x7fffffffu;
        found[taken] = bits;
        taken += bits >> 19 == bin;
    }
    /* Quickselect: descending position k - above. */
    int64_t low = 0, high = inside - 1, want = inside - (k - above);
    while (high - low > 32) {
        uint32_t pivot = found[low + (high - low) / 2];
        int64_t a = low, b = high;
        while (a <= b) {
            while (found[a] < pivot) a++;
            while (found[b] > pivot) b--;
            if (a <= b) {
                uint32_t swap = found[a];
                found[a++] = found[b];
                found[b--] = swap;
            }
        }
        if (want <= b)
            high = b;
        else if (want >= a)
            low = a;
        else
            low = high = want;
    }
    if (high > low) qsort(found + low, (size_t)(high - low + 1), sizeof *found, compare_bits);
    uint32_t kth = found[want];
    free(found);
    return kth;
}

typedef struct {
    const float *values;
    const int64_t *starts; /* groups + 1 of them */
    const int64_t *keep;   /* how many each group keeps, at least */
    uint32_t *thresholds;
} Thresholds;

static void find_thresholds(void *context, int64_t begin, int64_t end) {
    Thresholds *job = context;
    for (int64_t g = begin; g < end; g++)
        job->thresholds[g] =
            kth_magnitude(job->values + job->starts[g], job->starts[g + 1] - job->starts[g], job->keep[g]);
}

void sfl_thresholds(const float *values, const int64_t *starts, int64_t groups, const int64_t *keep,
                    uint32_t *thresholds, int32_t threads) {
    Thresholds job = {values, starts, keep, thresholds};
    spread(groups, 1, 1, threads, find_thresholds, &job);
}

static int64_t compact_plain(const float *values, int64_t n, int64_t at, uint32_t threshold,
                             uint8_t *mask, float *out) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        int keep = (as_bits(values[i]) & 0x7fffffffu) >= threshold;
        out[kept] = values[i];
        kept += keep;
        mask[(at + i) >> 3] |= (uint8_t)(keep << ((at + i) & 7));
    }
    return kept;
}

#ifdef HAVE_COMPRESS
__attribute__((target("avx512f"))) static int64_t compact_avx512(const float *values, int64_t n,
                                                                 int64_t at, uint32_t threshold,
                                                                 uint8_t *mask, float *out) {
    const __m512i limit = _mm512_set1_epi32((int32_t)threshold);
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    int64_t kept = 0, i = 0;
    for (; i + 16 <= n; i += 16) {
        __m512i bits = _mm512_loadu_si512((const void *)(values + i));
        __mmask16 keep = _mm512_cmpge_epi32_mask(_mm512_and_si512(bits, magnitude), limit);
        _mm512_storeu_si512((void *)(out + kept), _mm512_maskz_compress_epi32(keep, bits));
        memcpy(mask + ((at + i) >> 3), &keep, 2);
        kept += __builtin_popcount(keep);
    }
    return kept + compact_plain(values + i, n - i, at + i, threshold, mask, out + kept);
}
#endif

/* Values at or above their group's threshold, and a bit for each value. `out` has room for n + 16.
 * Groups begin at multiples of 16 values or everything goes the plain way. */
int64_t sfl_compact(const float *values, const int64_t *starts, int64_t groups,
                    const uint32_t *thresholds, uint8_t *mask, float *out) {
    int64_t kept = 0;
    memset(mask, 0, (size_t)((starts[groups] + 7) / 8));
    for (int64_t g = 0; g < groups; g++) {
        const float *x = values + starts[g];
        int64_t n = starts[g + 1] - starts[g];
#ifdef HAVE_COMPRESS
        if (starts[g] % 8 == 0 && __builtin_cpu_supports("avx512f")) {
            kept += compact_avx512(x, n, starts[g], thresholds[g], mask, out + kept);
            continue;
        }
#endif
        kept += compact_plain(x, n, starts[g], thresholds[g], mask, out + kept);
    }
    return kept;
}

#ifdef HAVE_COMPRESS
__attribute__((target("avx512f"))) static int64_t expand_avx512(const uint8_t *mask,
                                                                const float *kept, int64_t n,
                                                                float *out) {
    int64_t taken = 0;
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 keep;
        memcpy(&keep, mask + (i >> 3), 2);
        /* Loads only what the mask asks for. */
        _mm512_storeu_ps(out + i, _mm512_maskz_expandloadu_ps(keep, kept + taken));
        taken += __builtin_popcount(keep);
    }
    return taken;
}
#endif

/* The inverse: kept values where the mask has ones, zeros elsewhere. */
void sfl_expand(const uint8_t *mask, const float *kept, int64_t n, float *out) {
    int64_t taken = 0, i = 0;
#ifdef HAVE_COMPRESS
    if (__builtin_cpu_supports("avx512f")) {
        i = n / 16 * 16;
        taken = expand_avx512(mask, kept, i, out);
    }
#endif
    for (; i < n; i++) {
        int keep = mask[i >> 3] >> (i & 7) & 1;
        out[i] = keep ? kept[taken] : 0.0f;
        taken += keep;
    }
}

/* ---- entropy coding: rANS with static tables, one context per row or column ------------------------ */

#define PROB_BITS 12
#define PROB (1 << PROB_BITS)
#define LOWER (1u << 15) /* states stay in [2^15, 2^31), words have 16 bits */

/* Sums of |code - centre| by row and by column. */
CLONES void sfl_magnitudes(const uint8_t *codes, int64_t rows, int64_t columns, int32_t centre,
                           int64_t *by_row, int64_t *by_column) {
    memset(by_column, 0, (size_t)columns * sizeof *by_column);
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *row = codes + r * columns;
        int64_t sum = 0;
        for (int64_t c = 0; c < columns; c++) {
            int32_t distance = (int32_t)row[c] - centre;
            distance = distance < 0 ? -distance : distance;
            sum += distance;
            by_column[c] += distance;
        }
        by_row[r] = sum;
    }
}

/* How often each code occurs in each context; a context of its own for each row or each column. */
void sfl_counts(const uint8_t *codes, int64_t rows, int64_t columns, const uint8_t *context_of,
                int32_t by_row, int32_t contexts, uint32_t *counts) {
    memset(counts, 0, (size_t)contexts * 256 * sizeof *counts);
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *row = codes + r * columns;
        if (by_row) {
            uint32_t *own = counts + (int64_t)context_of[r] * 256;
            for (int64_t c = 0; c < columns; c++) own[row[c]]++;
        } else {
            for (int64_t c = 0; c < columns; c++) counts[(int64_t)context_of[c] * 256 + row[c]]++;
        }
    }
}

typedef struct {
    uint32_t reciprocal;
    uint16_t frequency, start;
    uint32_t shift;
} Symbol;

typedef struct {
    const uint8_t *codes;
    uint8_t *decoded;
    int64_t rows, columns;
    const uint8_t *context_of;
    int32_t by_row, contexts, lanes, segments;
    const Symbol *symbols;     /* contexts x 256 */
    const uint32_t *slots;     /* contexts x PROB: code, frequency - 1, offset */
    uint16_t *words;           /* segments x capacity */
    int64_t capacity;
    int64_t *used;             /* words of each segment */
    const int64_t *word_start; /* of decoding */
    const uint16_t *read;
    int32_t bad;
} Rans;

static inline int64_t segment_begin(const Rans *job, int64_t s) {
    return job->rows * s / job->segments * job->columns;
}

static void encode_segments(void *context, int64_t first, int64_t last) {
    Rans *job = context;
    const int64_t columns = job->columns;
    const int32_t lanes = job->lanes;
    for (int64_t s = first; s < last; s++) {
        const int64_t begin = segment_begin(job, s), end = segment_begin(job, s + 1);
        uint16_t *top = job->words + (s + 1) * job->capacity, *out = top;
        uint32_t state[32];
        for (int32_t l = 0; l < lanes; l++) state[l] = LOWER;
        int64_t row = end / columns - 1, column = columns - 1;
        const Symbol *own = job->by_row && end > begin ? job->symbols + (int64_t)job->context_of[row] * 256 : NULL;
        for (int64_t i = end - 1; i >= begin; i--) {
            const Symbol *table = own ? own : job->symbols + (int64_t)job->context_of[column] * 256;
            const Symbol symbol = table[job->codes[i]];
            uint32_t x = state[(i - begin) & (lanes - 1)];
            const uint32_t full = x >= (uint32_t)symbol.frequency << 19;
            *(out - 1) = (uint16_t)x;
            out -= full;
            x = full ? x >> 16 : x;
            const uint32_t q =
                symbol.frequency == 1 ? x : (uint32_t)(((uint64_t)x * symbol.reciprocal) >> 32) >> symbol.shift;
            state[(i - begin) & (lanes - 1)] = (q << PROB_BITS) + (x - q * symbol.frequency) + symbol.start;
            if (column-- == 0) {
                column = columns - 1;
                row--;
                if (job->by_row && row >= 0) own = job->symbols + (int64_t)job->context_of[row] * 256;
            }
        }
        for (int32_t l = lanes - 1; l >= 0; l--) {
            *--out = (uint16_t)(state[l] >> 16);
            *--out = (uint16_t)state[l];
        }
        job->used[s] = top - out;
        memmove(job->words + s * job->capacity, out, (size_t)job->used[s] * 2);
    }
}

static void make_symbols(const uint16_t *frequencies, int32_t contexts, Symbol *symbols) {
    for (int32_t k = 0; k < contexts; k++) {
        uint32_t start = 0;
        for (int32_t c = 0; c < 256; c++) {
            uint32_t f = frequencies[k * 256 + c];
            Symbol *symbol = &symbols[k * 256 + c];
            uint32_t shift = 0;
            while (f > (1u << shift)) shift++;
            symbol->frequency = (uint16_t)f;
            symbol->start = (uint16_t)start;
            symbol->shift = f > 1 ? shift - 1 : 0;
            symbol->reciprocal = f > 1 ? (uint32_t)((((uint64_t)1 << (shift + 31)) + f - 1) / f) : 0;
            start += f;
        }
    }
}

/* Codes [rows, columns] as words; each segment has `capacity` words of room, at least its number of
 * codes + 2 * lanes + 1. Frequencies sum to 4096 in each context. Returns 0, or -1 out of memory. */
int sfl_rans_encode(const uint8_t *codes, int64_t rows, int64_t columns, const uint8_t *context_of,
                    int32_t by_row, int32_t contexts, const uint16_t *frequencies, int32_t lanes,
                    int32_t segments, uint16_t *words, int64_t capacity, int64_t *used,
                    int32_t threads) {
    Symbol *symbols = malloc((size_t)contexts * 256 * sizeof *symbols);
    if (!symbols) return -1;
    make_symbols(frequencies, contexts, symbols);
    Rans job = {.codes = codes, .rows = rows, .columns = columns, .context_of = context_of,
                .by_row = by_row, .contexts = contexts, .lanes = lanes, .segments = segments,
                .symbols = symbols, .words = words, .capacity = capacity, .used = used};
    spread(segments, 1, 1, threads, encode_segments, &job);
    free(symbols);
    return 0;
}

static void decode_segments(void *context, int64_t first, int64_t last) {
    Rans *job = context;
    const int64_t columns = job->columns;
    const int32_t lanes = job->lanes;
    for (int64_t s = first; s < last; s++) {
        const int64_t begin = segment_begin(job, s), end = segment_begin(job, s + 1);
        const uint16_t *in = job->read + job->word_start[s], *stop = job->read + job->word_start[s + 1];
        uint32_t state[32];
        if (stop - in < 2 * lanes) {
            job->bad = 1;
            continue;
        }
        for (int32_t l = 0; l < lanes; l++) {
            state[l] = in[0] | (uint32_t)in[1] << 16;
            in += 2;
        }
        int64_t row = begin / columns, column = 0;
        const uint32_t *own = job->by_row && end > begin ? job->slots + (int64_t)job->context_of[row] * PROB : NULL;
        for (int64_t i = begin; i < end; i++) {
            const uint32_t *table = own ? own : job->slots + (int64_t)job->context_of[column] * PROB;
            uint32_t x = state[(i - begin) & (lanes - 1)];
            const uint32_t slot = table[x & (PROB - 1)];
            job->decoded[i] = (uint8_t)slot;
            /* frequency - 1 and offset within the symbol, 12 bits each */
            x = ((slot >> 8 & (PROB - 1)) + 1) * (x >> PROB_BITS) + (slot >> 20);
            if (x < LOWER) {
                if (in >= stop) {
                    job->bad = 1;
                    break;
                }
                x = x << 16 | *in++;
            }
            state[(i - begin) & (lanes - 1)] = x;
            if (++column == columns) {
                column = 0;
                row++;
                if (job->by_row && row < job->rows) own = job->slots + (int64_t)job->context_of[row] * PROB;
            }
        }
        if (in != stop) job->bad = 1;
        for (int32_t l = 0; l < lanes; l++) /* where encoding began */
            if (state[l] != LOWER) job->bad = 1;
    }
}

/* Returns 0, -1 out of memory, 1 where the words are not what an encoder made. */
int sfl_rans_decode(const uint16_t *words, const int64_t *word_start, int64_t rows, int64_t columns,
                    const uint8_t *context_of, int32_t by_row, int32_t contexts,
                    const uint16_t *frequencies, int32_t lanes, int32_t segments, uint8_t *codes,
                    int32_t threads) {
    uint32_t *slots = malloc((size_t)contexts * PROB * sizeof *slots);
    if (!slots) return -1;
    for (int32_t k = 0; k < contexts; k++) {
        uint32_t at = 0;
        for (uint32_t c = 0; c < 256; c++)
            for (uint32_t j = 0; j < frequencies[k * 256 + c] && at < PROB; j++, at++)
                slots[(int64_t)k * PROB + at] =
                    c | (uint32_t)(frequencies[k * 256 + c] - 1) << 8 | j << 20;
        for (; at < PROB; at++) slots[(int64_t)k * PROB + at] = 0;
    }
    Rans job = {.decoded = codes, .rows = rows, .columns = columns, .context_of = context_of,
                .by_row = by_row, .contexts = contexts, .lanes = lanes, .segments = segments,
                .slots = slots, .word_start = word_start, .read = words};
    spread(segments, 1, 1, threads, decode_segments, &job);
    free(slots);
    return job.bad;
}
