/* The passes of the codec that have to be fast: quantise, sparsify, pack, entropy-code.
 *
 * Every function here has a twin in torch or numpy that gives the same bytes (tests hold them
 * together), so nothing may be contracted or reassociated: built with -ffp-contract=off, and sums
 * of floats are taken in one order. Values are finite where floats are compared (-ffinite-math-only
 * lets the compiler see a minimum in a comparison); NaN and infinity are found by their bits.
 * Called through ctypes, which releases the GIL.
 */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ABI 4
#define MAX_THREADS 16
#define GRAIN (1 << 16) /* values below which a second thread costs more than it brings */

/* SFL_PORTABLE leaves out all that is beyond the processor's baseline; the bytes are the same. */
#if !defined(SFL_PORTABLE) && defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && \
    !defined(__clang__)
/* By feature: a clone by arch= is chosen by the processor's name, and AMD's are never haswell. */
#define CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CLONES
#endif
#if !defined(SFL_PORTABLE) && defined(__x86_64__) && defined(__GNUC__) /* clang too */
#include <immintrin.h>
#define AVX2 1
#endif

int sfl_abi(void) { return ABI; }

/* What decodes trusts no length: each function is told how much there is, looks before it reads,
 * and returns MISFIT where that is not what the others make due. */
#define MISFIT 2
#define LARGEST ((int64_t)1 << 40) /* values of a tensor; products of lengths stay within 63 bits */

static int all_below(const uint8_t *codes, int64_t n, int32_t bound) {
    int low = 1;
    for (int64_t i = 0; i < n; i++) low &= codes[i] < bound;
    return low;
}

static int all_within(const int64_t *slots, int64_t n, int64_t size) {
    int within = 1;
    for (int64_t i = 0; i < n; i++) within &= slots[i] >= 0 && slots[i] < size;
    return within;
}

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

/* A float's bits, read in place: through memcpy gcc does not vectorise a reduction. */
typedef uint32_t __attribute__((may_alias)) Bits;

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
    const uint32_t key = job->key;
    for (int64_t start = begin; start < end; start += job->block) {
        const int32_t size = (int32_t)(end - start < job->block ? end - start : job->block);
        const uint32_t first = (uint32_t)start;
        const float *restrict x = job->values + start;
        const Bits *restrict bits = (const Bits *)x;
        uint8_t *restrict codes = job->codes + start;
        uint32_t largest = 0; /* magnitudes order as their bits do */
        for (int32_t i = 0; i < size; i++) {
            const uint32_t magnitude = bits[i] & 0x7fffffffu;
            largest = magnitude > largest ? magnitude : largest;
        }
        if (largest >= 0x7f800000u) {
            job->bad = 1;
            return;
        }
        uint32_t scale = (as_bits(as_float(largest) / levels) + 0xffffu) & 0xffff0000u;
        if (scale < 0x03800000u) scale = 0x03800000u; /* 2^-120: its reciprocal is finite */
        if (scale >= 0x7f800000u) scale = 0x7f7f0000u;
        job->scales[start / job->block] = (uint16_t)(scale >> 16);
        const float inverse = 1.0f / as_float(scale);
        if (job->stochastic) {
            for (int32_t i = 0; i < size; i++) {
                float u = x[i] * inverse + uniform(key, first + (uint32_t)i);
                u += levels;
                u = u < 0.0f ? 0.0f : u;
                u = u > top ? top : u;
                codes[i] = (uint8_t)(int32_t)u;
            }
        } else {
            for (int32_t i = 0; i < size; i++) {
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

int sfl_dequantise_blocks(const uint8_t *codes, const uint16_t *scales, int64_t num_scales, int64_t n,
                          int64_t block, int32_t levels, float *values, int32_t threads) {
    if (n < 0 || n > LARGEST || block < 1 || num_scales != n / block + (n % block != 0)) return MISFIT;
    Unblocks job = {codes, scales, block, levels, values};
    spread(n, block, GRAIN, threads, dequantise_blocks, &job);
    return 0;
}

/* ---- one step for the whole tensor ------------------------------------------------------------- */

typedef struct {
    const float *values;
    float inverse;
    int32_t stochastic;
    uint32_t key;
    uint8_t *codes; /* 1..255, zero is 128 */
    int32_t bad;
} Grid;

CLONES static void quantise_grid(void *context, int64_t begin, int64_t end) {
    Grid *job = context;
    const float inverse = job->inverse;
    const uint32_t key = job->key;
    for (int64_t start = begin; start < end; start += 1 << 12) {
        const int32_t size = (int32_t)(end - start < 1 << 12 ? end - start : 1 << 12);
        const uint32_t first = (uint32_t)start;
        const float *restrict x = job->values + start;
        const Bits *restrict bits = (const Bits *)x;
        uint8_t *restrict codes = job->codes + start;
        uint32_t largest = 0;
        for (int32_t i = 0; i < size; i++) {
            const uint32_t magnitude = bits[i] & 0x7fffffffu;
            largest = magnitude > largest ? magnitude : largest;
        }
        if (largest >= 0x7f800000u) {
            job->bad = 1;
            return;
        }
        if (job->stochastic) {
            for (int32_t i = 0; i < size; i++) {
                float u = x[i] * inverse + uniform(key, first + (uint32_t)i);
                u += 128.0f;
                u = u < 1.0f ? 1.0f : u;
                u = u > 255.0f ? 255.0f : u;
                codes[i] = (uint8_t)(int32_t)u;
            }
        } else {
            for (int32_t i = 0; i < size; i++) {
                float u = x[i] * inverse + 0.5f;
                u += 128.0f;
                u = u < 1.0f ? 1.0f : u;
                u = u > 255.0f ? 255.0f : u;
                codes[i] = (uint8_t)(int32_t)u;
            }
        }
    }
}

/* Returns 1 where a value is NaN or infinite. */
int sfl_quantise_grid(const float *values, int64_t n, float inverse, int32_t stochastic,
                      uint32_t key, uint8_t *codes, int32_t threads) {
    Grid job = {values, inverse, stochastic, key, codes, 0};
    spread(n, 64, GRAIN, threads, quantise_grid, &job);
    return job.bad;
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
    const float step = job->step;
    const uint32_t key = job->key;
    for (int64_t start = begin; start < end; start += 1 << 12) {
        const int32_t size = (int32_t)(end - start < 1 << 12 ? end - start : 1 << 12);
        const uint32_t first = (uint32_t)start;
        const uint8_t *restrict codes = job->codes + start;
        float *restrict values = job->values + start;
        if (job->dithered) {
            for (int32_t i = 0; i < size; i++) {
                float u = (float)((int32_t)codes[i] - 128) - uniform(key, first + (uint32_t)i);
                u += 0.5f;
                values[i] = u * step;
            }
        } else {
            for (int32_t i = 0; i < size; i++)
                values[i] = (float)((int32_t)codes[i] - 128) * step;
        }
    }
}

void sfl_dequantise_grid(const uint8_t *codes, int64_t n, float step, int32_t dithered,
                         uint32_t key, float *values, int32_t threads) {
    Ungrid job = {codes, step, dithered, key, values};
    spread(n, 64, GRAIN, threads, dequantise_grid, &job);
}

/* ---- packing ----------------------------------------------------------------------------------- */

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the codec's kernel is for little-endian machines; without it torch does the work"
#endif
typedef uint16_t __attribute__((may_alias)) Pair; /* two codes, the first one low */

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
    if (bits == 4) { /* the usual case, in a form that vectorises */
        const int64_t pairs = (end - begin) / 2;
        const Pair *restrict in = (const Pair *)(job->in + begin);
        uint8_t *restrict out = job->out + begin / 2;
        for (int64_t i = 0; i < pairs; i++) out[i] = (uint8_t)(in[i] | in[i] >> 4);
        begin += 2 * pairs & ~(int64_t)7;
    }
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
    if (bits == 4) {
        const int64_t pairs = (end - begin) / 2;
        const uint8_t *restrict in = job->in + begin / 2;
        Pair *restrict out = (Pair *)(job->out + begin);
        for (int64_t i = 0; i < pairs; i++)
            out[i] = (uint16_t)((in[i] & 15) | (uint32_t)(in[i] >> 4) << 8);
        begin += 2 * pairs & ~(int64_t)7;
    }
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

int sfl_unpack_bits(const uint8_t *in, int64_t size, int64_t n, int32_t bits, uint8_t *codes,
                    int32_t threads) {
    if (n < 0 || n > LARGEST || bits < 1 || bits > 8 || size != (n * bits + 7) / 8) return MISFIT;
    Pack job = {in, codes, n, bits};
    spread(n, 8, GRAIN, threads, unpack_bits, &job);
    return 0;
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
        const int64_t stop = end < whole ? end : whole;
        const Pair *restrict in = (const Pair *)job->in;
        uint8_t *restrict out = job->out;
        for (; i < stop; i++) out[i] = (uint8_t)((in[i] & 255) + (uint16_t)levels * (in[i] >> 8));
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
    if (group == 2) {
        const Pair *pairs = (const Pair *)job->table;
        Pair *restrict out = (Pair *)job->out;
        for (; begin < end && begin < whole; begin++) out[begin] = pairs[job->in[begin]];
    }
    for (int64_t i = begin; i < end; i++) {
        const uint8_t *codes = job->table + (int64_t)job->in[i] * group;
        const int32_t size = i < whole ? group : (int32_t)(job->n - whole * group);
        for (int32_t j = 0; j < size; j++) job->out[i * group + j] = codes[j];
    }
}

int sfl_unpack_radix(const uint8_t *in, int64_t size, int64_t n, int32_t levels, int32_t group,
                     uint8_t *codes, int32_t threads) {
    if (n < 0 || n > LARGEST || levels < 1 || group < 1 || group > 8) return MISFIT;
    if (size != n / group + (n % group != 0)) return MISFIT;
    _Alignas(8) uint8_t table[256 * 8];
    for (int32_t byte = 0; byte < 256; byte++) {
        int32_t value = byte;
        for (int32_t j = 0; j < group; j++) {
            table[byte * group + j] = (uint8_t)(value % levels);
            value /= levels;
        }
    }
    Radix job = {in, codes, n, levels, group, table};
    spread((n + group - 1) / group, 64, GRAIN, threads, unpack_radix, &job);
    return 0;
}

/* ---- sparsification -------------------------------------------------------------------------------- */

#define SAMPLE 16 /* one value in so many tells where the threshold must lie */
#define BINS 4096 /* of a magnitude's exponent and its four leading bits */
#define BIN_SHIFT 19

typedef uint32_t Moves[256][8];

#ifdef AVX2
/* For each mask of eight lanes: where its ones come from when they move together, or the inverse. */
static void make_moves(Moves moves, int together) {
    for (int32_t mask = 0; mask < 256; mask++) {
        int32_t rank = 0;
        memset(moves[mask], 0, sizeof moves[mask]);
        for (int32_t lane = 0; lane < 8; lane++) {
            if (!(mask >> lane & 1)) continue;
            moves[mask][together ? rank : lane] = (uint32_t)(together ? lane : rank);
            rank++;
        }
    }
}
#endif

/* The `want`-th smallest of `found`, which is put out of order. */
static uint32_t select_bits(uint32_t *found, int64_t count, int64_t want) {
    int64_t low = 0, high = count - 1;
    while (low < high) {
        const uint32_t pivot = found[low + (high - low) / 2];
        int64_t a = low, b = high;
        while (a <= b) {
            while (found[a] < pivot) a++;
            while (found[b] > pivot) b--;
            if (a <= b) {
                const uint32_t swap = found[a];
                found[a++] = found[b];
                found[b--] = swap;
            }
        }
        if (want <= b)
            high = b;
        else if (want >= a)
            low = a;
        else
            break;
    }
    return found[want];
}

/* How many magnitudes reach `low`; those of them below `high` go to `band`. */
static int64_t gather_plain(const Bits *bits, int64_t n, uint32_t low, uint32_t high,
                            uint32_t *band, int64_t *in_band) {
    int64_t reach = 0, taken = *in_band;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t magnitude = bits[i] & 0x7fffffffu;
        band[taken] = magnitude;
        taken += magnitude >= low && magnitude < high;
        reach += magnitude >= low;
    }
    *in_band = taken;
    return reach;
}

#ifdef AVX2
__attribute__((target("avx2,popcnt"))) static int64_t gather_avx2(
    const Bits *bits, int64_t n, uint32_t low, uint32_t high, uint32_t *band, int64_t *in_band,
    const Moves moves) {
    const __m256i sign = _mm256_set1_epi32(0x7fffffff);
    const __m256i below = _mm256_set1_epi32((int32_t)low - 1);
    const __m256i above = _mm256_set1_epi32((int32_t)high);
    int64_t i = 0, reach = 0, taken = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256i magnitude =
            _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(bits + i)), sign);
        const __m256i at_least = _mm256_cmpgt_epi32(magnitude, below);
        const __m256i inside = _mm256_and_si256(at_least, _mm256_cmpgt_epi32(above, magnitude));
        const uint32_t lanes = (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(inside));
        const __m256i move = _mm256_loadu_si256((const __m256i *)moves[lanes]);
        /* At most as many were taken as were read, so eight more fit. */
        _mm256_storeu_si256((__m256i *)(band + taken),
                            _mm256_permutevar8x32_epi32(magnitude, move));
        taken += __builtin_popcount(lanes);
        reach += __builtin_popcount(
            (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(at_least)));
    }
    *in_band = taken;
    return reach + gather_plain(bits + i, n - i, low, high, band, in_band);
}
#endif

static int64_t gather(const Bits *bits, int64_t n, uint32_t low, uint32_t high, uint32_t *band,
                      int64_t *in_band, const Moves moves) {
    *in_band = 0;
#ifdef AVX2
    if (moves) return gather_avx2(bits, n, low, high, band, in_band, moves);
#endif
    (void)moves;
    return gather_plain(bits, n, low, high, band, in_band);
}

/* Two magnitudes between which the k-th largest of n very likely lies, by a sample. */
static void estimate(const Bits *bits, int64_t n, int64_t k, uint32_t *low, uint32_t *high) {
    uint32_t counts[BINS];
    memset(counts, 0, sizeof counts);
    const int64_t sample = n / SAMPLE, margin = 16 + sample / 40, middle = k / SAMPLE;
    for (int64_t i = 0; i < sample; i++) counts[(bits[i * SAMPLE] & 0x7fffffffu) >> BIN_SHIFT]++;
    int64_t above = 0;
    uint32_t bin = BINS;
    while (bin > 0 && above + counts[bin - 1] < middle - margin) above += counts[--bin];
    if (bin < BINS) *high = bin << BIN_SHIFT;
    while (bin > 0 && above < middle + margin) above += counts[--bin];
    *low = above < middle + margin ? 0 : bin << BIN_SHIFT;
}

/* The `want`-th smallest of values in [low, high), by the bin it lies in, and how many are less. */
static uint32_t select_in_band(uint32_t *band, int64_t count, int64_t want, uint32_t low,
                               uint32_t high, int64_t *less) {
    uint32_t counts[1024];
    uint32_t shift = 0;
    while ((high - low) >> shift >= 1024) shift++;
    memset(counts, 0, sizeof counts);
    for (int64_t i = 0; i < count; i++) counts[(band[i] - low) >> shift]++;
    int64_t below = 0;
    uint32_t bin = 0;
    while (below + counts[bin] <= want) below += counts[bin++];
    int64_t taken = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint32_t value = band[i];
        band[taken] = value;
        taken += (value - low) >> shift == bin;
    }
    const uint32_t found = select_bits(band, taken, want - below);
    for (int64_t i = 0; i < taken; i++) below += band[i] < found;
    *less = below;
    return found;
}

/* Bits of the k-th largest magnitude of n values (1 <= k <= n), and how many reach it; by way of a
 * sample, and where that erred, all are looked at. */
static uint32_t kth_magnitude(const float *values, int64_t n, int64_t k, uint32_t *room,
                              int64_t *kept, const Moves moves) {
    const Bits *bits = (const Bits *)values;
    uint32_t low = 0, high = 0x7fffffffu;
    if (n >= 256 * SAMPLE) estimate(bits, n, k, &low, &high);
    int64_t taken, reach = gather(bits, n, low, high, room, &taken, moves);
    if (reach < k || reach - taken >= k) {
        low = 0;
        high = 0x7fffffffu;
        reach = gather(bits, n, low, high, room, &taken, moves);
    }
    int64_t less;
    const uint32_t kth = select_in_band(room, taken, reach - k, low, high, &less);
    *kept = reach - less;
    return kth;
}

static int64_t compact_plain(const float *values, int64_t n, int64_t at, uint32_t threshold,
                             uint8_t *mask, float *out) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        const int keep = (as_bits(values[i]) & 0x7fffffffu) >= threshold;
        if (keep) out[kept++] = values[i];
        mask[(at + i) >> 3] |= (uint8_t)(keep << ((at + i) & 7));
    }
    return kept;
}

#ifdef AVX2
/* `at` is a multiple of eight; `room` is what `out` may take. */
__attribute__((target("avx2,popcnt"))) static int64_t compact_avx2(
    const float *values, int64_t n, int64_t at, uint32_t threshold, uint8_t *mask, float *out,
    int64_t room, const Moves moves) {
    const __m256i sign = _mm256_set1_epi32(0x7fffffff);
    const __m256i below = _mm256_set1_epi32((int32_t)threshold - 1);
    int64_t kept = 0, i = 0;
    for (; i + 8 <= n && kept + 8 <= room; i += 8) {
        const __m256i bits = _mm256_loadu_si256((const __m256i *)(values + i));
        const __m256i keep = _mm256_cmpgt_epi32(_mm256_and_si256(bits, sign), below);
        const uint32_t lanes = (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(keep));
        const __m256i move = _mm256_loadu_si256((const __m256i *)moves[lanes]);
        _mm256_storeu_si256((__m256i *)(out + kept), _mm256_permutevar8x32_epi32(bits, move));
        mask[(at + i) >> 3] = (uint8_t)lanes;
        kept += __builtin_popcount(lanes);
    }
    return kept + compact_plain(values + i, n - i, at + i, threshold, mask, out + kept);
}
#endif

typedef struct {
    const float *values;
    const int64_t *starts; /* groups + 1 of them */
    const int64_t *keep;   /* how many each group keeps, at least */
    uint32_t *thresholds;
    int64_t *kept; /* groups + 1: where each group's survivors begin */
    uint32_t *room;
    uint8_t *mask;
    float *out;
    const uint32_t (*moves)[8]; /* NULL without AVX2 */
} Sparsify;

static void find_thresholds(void *context, int64_t begin, int64_t end) {
    Sparsify *job = context;
    for (int64_t g = begin; g < end; g++) {
        const float *values = job->values + job->starts[g];
        const int64_t n = job->starts[g + 1] - job->starts[g];
        job->thresholds[g] =
            kth_magnitude(values, n, job->keep[g], job->room + job->starts[g] + g,
                          &job->kept[g + 1], job->moves);
    }
}

static void compact(void *context, int64_t begin, int64_t end) {
    Sparsify *job = context;
    for (int64_t g = begin; g < end; g++) {
        const float *values = job->values + job->starts[g];
        const int64_t n = job->starts[g + 1] - job->starts[g];
        float *out = job->out + job->kept[g];
#ifdef AVX2
        if (job->starts[g] % 8 == 0 && job->moves) {
            compact_avx2(values, n, job->starts[g], job->thresholds[g], job->mask, out,
                         job->kept[g + 1] - job->kept[g], job->moves);
            continue;
        }
#endif
        compact_plain(values, n, job->starts[g], job->thresholds[g], job->mask, out);
    }
}

/* The values of each group's `keep` largest magnitudes, ties included, and a bit for each value.
 * Returns how many there are, or -1 out of memory; more than `capacity` are only counted. */
int64_t sfl_sparsify(const float *values, const int64_t *starts, int64_t groups,
                     const int64_t *keep, uint8_t *mask, float *out, int64_t capacity,
                     int32_t threads) {
    const int64_t n = starts[groups];
    uint32_t *thresholds = malloc((size_t)groups * sizeof *thresholds);
    int64_t *kept = calloc((size_t)groups + 1, sizeof *kept);
    uint32_t *room = malloc((size_t)(n + groups) * sizeof *room); /* each writes one ahead */
    int64_t total = -1;
    if (thresholds && kept && room) {
        Sparsify job = {values, starts, keep, thresholds, kept, room, mask, out, NULL};
#ifdef AVX2
        Moves moves;
        make_moves(moves, 1);
        if (__builtin_cpu_supports("avx2")) job.moves = (const uint32_t(*)[8])moves;
#endif
        spread(groups, 1, 1, n < GRAIN ? 1 : threads, find_thresholds, &job);
        int aligned = 1; /* whether no two groups share a byte of the mask */
        for (int64_t g = 0; g < groups; g++) {
            kept[g + 1] += kept[g];
            aligned &= starts[g] % 8 == 0;
        }
        total = kept[groups];
        if (total <= capacity) {
            memset(mask, 0, (size_t)((n + 7) / 8));
            spread(groups, 1, 1, n < GRAIN || !aligned ? 1 : threads, compact, &job);
        }
    }
    free(thresholds);
    free(kept);
    free(room);
    return total;
}

#ifdef AVX2
__attribute__((target("avx2,popcnt"))) static int64_t expand_avx2(const uint8_t *mask,
                                                                   const float *kept,
                                                                   int64_t count, int64_t n,
                                                                   float *out, int64_t *done) {
    Moves moves;
    make_moves(moves, 0);
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    int64_t taken = 0, i = 0;
    for (; i + 8 <= n && taken + 8 <= count; i += 8) {
        const uint32_t lanes = mask[i >> 3];
        const __m256i ones = _mm256_cmpeq_epi32(
            _mm256_and_si256(_mm256_set1_epi32((int32_t)lanes), lane), lane);
        const __m256i values = _mm256_permutevar8x32_epi32(
            _mm256_loadu_si256((const __m256i *)(kept + taken)),
            _mm256_loadu_si256((const __m256i *)moves[lanes]));
        _mm256_storeu_si256((__m256i *)(out + i), _mm256_and_si256(values, ones));
        taken += __builtin_popcount(lanes);
    }
    *done = i;
    return taken;
}
#endif

static int64_t ones_of(const uint8_t *mask, int64_t n) {
    int64_t ones = 0;
    for (int64_t i = 0; i < n / 8; i++) ones += __builtin_popcount(mask[i]);
    if (n % 8) ones += __builtin_popcount(mask[n / 8] & ((1u << (n % 8)) - 1));
    return ones;
}

/* The inverse: `count` kept values where the mask has ones, zeros elsewhere. */
int sfl_expand(const uint8_t *mask, int64_t size, const float *kept, int64_t count, int64_t n,
               float *out) {
    if (n < 0 || n > LARGEST || size != (n + 7) / 8 || ones_of(mask, n) != count) return MISFIT;
    int64_t taken = 0, i = 0;
#ifdef AVX2
    if (__builtin_cpu_supports("avx2")) taken = expand_avx2(mask, kept, count, n, out, &i);
#endif
    for (; i < n; i++) {
        const int keep = mask[i >> 3] >> (i & 7) & 1;
        out[i] = keep ? kept[taken] : 0.0f;
        taken += keep;
    }
    return 0;
}

/* ---- rows that both ends remember, in bf16 ------------------------------------------------------ */

#define BF16_MAX 0x1.fep+127f

CLONES static void gather_rows(const uint16_t *table, const int64_t *slots, int64_t n,
                               int64_t hidden, float *out) {
    for (int64_t i = 0; i < n; i++) {
        const uint16_t *restrict row = table + slots[i] * hidden;
        Bits *restrict bits = (Bits *)(out + i * hidden);
        for (int64_t c = 0; c < hidden; c++) bits[c] = (uint32_t)row[c] << 16;
    }
}

int sfl_gather_rows(const uint16_t *table, int64_t size, const int64_t *slots, int64_t n,
                    int64_t hidden, float *out) {
    if (!all_within(slots, n, size)) return MISFIT;
    gather_rows(table, slots, n, hidden, out);
    return 0;
}

CLONES static void move_row(uint16_t *restrict row, const float *restrict sums, int64_t hidden,
                            float times, float weight) {
    for (int64_t c = 0; c < hidden; c++) {
        const float mean = sums[c] / times;
        const float known = as_float((uint32_t)row[c] << 16);
        const float step = weight * (mean - known);
        float moved = weight >= 1.0f ? mean : known + step;
        moved = moved < -BF16_MAX ? -BF16_MAX : moved;
        moved = moved > BF16_MAX ? BF16_MAX : moved;
        const uint32_t bits = as_bits(moved);
        row[c] = (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
}

CLONES static void add_row(float *restrict sums, const float *restrict values, int64_t hidden) {
    for (int64_t c = 0; c < hidden; c++) sums[c] += values[c];
}

/* Each slot moves towards the mean of its rows, summed in their order. */
int sfl_move_rows(uint16_t *table, float *written, int64_t size, int64_t hidden,
                  const int64_t *slots, const float *values, int64_t n, float floor) {
    if (!all_within(slots, n, size)) return MISFIT;
    int32_t *place = calloc((size_t)size, sizeof *place); /* of each slot among those seen, from 1 */
    float *sums = calloc((size_t)(n * hidden), sizeof *sums);
    float *times = calloc((size_t)n, sizeof *times);
    int64_t *seen = malloc((size_t)n * sizeof *seen);
    int64_t count = 0;
    const int failed = place == NULL || sums == NULL || times == NULL || seen == NULL;
    for (int64_t i = 0; i < n && !failed; i++) {
        const int64_t slot = slots[i];
        if (place[slot] == 0) {
            seen[count++] = slot;
            place[slot] = (int32_t)count;
        }
        const int64_t at = place[slot] - 1;
        add_row(sums + at * hidden, values + i * hidden, hidden);
        times[at] += 1.0f;
    }
    for (int64_t k = 0; k < count; k++) {
        const int64_t slot = seen[k];
        written[slot] += times[k];
        const float share = times[k] / written[slot];
        move_row(table + slot * hidden, sums + k * hidden, hidden, times[k],
                 share > floor ? share : floor);
    }
    free(place);
    free(sums);
    free(times);
    free(seen);
    return failed;
}

/* ---- entropy coding: rANS with static tables, one context per row or column ------------------------ */

#define PROB_BITS 12
#define PROB (1 << PROB_BITS)
#define LOWER (1u << 15) /* states stay in [2^15, 2^31), words have 16 bits */

/* Sums of |code - centre| by row and by column; a column's fit 32 bits (rows < 2^24). */
CLONES void sfl_magnitudes(const uint8_t *codes, int64_t rows, int64_t columns, int32_t centre,
                           int64_t *by_row, uint32_t *by_column) {
    memset(by_column, 0, (size_t)columns * sizeof *by_column);
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *restrict row = codes + r * columns;
        uint32_t *restrict sums = by_column;
        uint32_t sum = 0;
        for (int64_t c = 0; c < columns; c++) {
            const int32_t distance = (int32_t)row[c] - centre;
            const uint32_t magnitude = (uint32_t)(distance < 0 ? -distance : distance);
            sum += magnitude;
            sums[c] += magnitude;
        }
        by_row[r] = sum;
    }
}

typedef struct {
    const uint8_t *codes;
    int64_t columns;
    const uint8_t *context_of;
    int32_t by_row, contexts;
    uint32_t *counts;
    pthread_mutex_t lock;
    int32_t failed;
} Counting;

/* Neighbours are often equal, and a counter that was just written is slow to read again: four
 * tables take turns. */
static void count_rows(void *context, int64_t begin, int64_t end) {
    Counting *job = context;
    const int64_t columns = job->columns, size = (int64_t)job->contexts * 256;
    uint32_t *own = calloc((size_t)size * 4, sizeof *own);
    if (!own) {
        job->failed = 1;
        return;
    }
    for (int64_t r = begin; r < end; r++) {
        const uint8_t *row = job->codes + r * columns;
        if (job->by_row) {
            uint32_t *table = own + (int64_t)job->context_of[r] * 256;
            int64_t c = 0;
            for (; c + 4 <= columns; c += 4)
                for (int64_t j = 0; j < 4; j++) table[j * size + row[c + j]]++;
            for (; c < columns; c++) table[row[c]]++;
        } else {
            for (int64_t c = 0; c < columns; c++)
                own[(c & 3) * size + ((int64_t)job->context_of[c] << 8) + row[c]]++;
        }
    }
    pthread_mutex_lock(&job->lock);
    for (int64_t i = 0; i < size; i++)
        job->counts[i] += own[i] + own[size + i] + own[2 * size + i] + own[3 * size + i];
    pthread_mutex_unlock(&job->lock);
    free(own);
}

/* How often each code occurs in each context; a context of its own for each row or each column.
 * Returns 1 out of memory. */
int sfl_counts(const uint8_t *codes, int64_t rows, int64_t columns, const uint8_t *context_of,
               int32_t by_row, int32_t contexts, uint32_t *counts, int32_t threads) {
    Counting job = {codes,  columns,  context_of,
                    by_row, contexts, counts,
                    PTHREAD_MUTEX_INITIALIZER, 0};
    memset(counts, 0, (size_t)contexts * 256 * sizeof *counts);
    spread(rows, 1, 1 + GRAIN / (columns ? columns : 1), threads, count_rows, &job);
    return job.failed;
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

/* Whether each segment's words lie behind the last one's, and end with all there are. */
static int in_order(const int64_t *word_start, int32_t segments, int64_t num_words) {
    if (word_start[0] != 0 || word_start[segments] != num_words) return 0;
    for (int32_t s = 0; s < segments; s++)
        if (word_start[s + 1] < word_start[s] || word_start[s + 1] > num_words) return 0;
    return 1;
}

/* Returns 0, -1 out of memory, 1 where the words are not what an encoder made, MISFIT. */
int sfl_rans_decode(const uint16_t *words, int64_t num_words, const int64_t *word_start, int64_t rows,
                    int64_t columns, const uint8_t *context_of, int64_t num_contexts_of,
                    int32_t by_row, int32_t contexts, const uint16_t *frequencies, int32_t lanes,
                    int32_t segments, uint8_t *codes, int32_t threads) {
    if (rows < 0 || columns < 1 || rows > LARGEST / columns || contexts < 1) return MISFIT;
    if ((lanes != 2 && lanes != 8 && lanes != 32) || segments < 1) return MISFIT;
    if (num_contexts_of != (by_row ? rows : columns)) return MISFIT;
    if (!all_below(context_of, num_contexts_of, contexts)) return MISFIT;
    if (!in_order(word_start, segments, num_words)) return MISFIT;
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
