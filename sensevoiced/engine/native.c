/* One layer of SenseVoiceSmall's encoder, and a linear layer alone, for x86-64 with AVX-512 (VNNI, BF16).
 *
 * The same arithmetic as encoder.py's Block and the layers of linear.py and int8.py; native.py calls it, and
 * where it cannot be built or run those are used instead. What it does better: a layer's passes over its rows
 * are few and stay in the cache, and products are of the size this model has.
 *
 * A row's result depends on its own utterance alone, bit by bit: every sum runs over one fixed order, and
 * 8-bit inputs have one scale an utterance. It starts no threads: the work is spread over the OpenMP team that
 * torch has already, through the entry points of libgomp that GCC's own code calls.
 *
 * Matrices are row-major. In a `matrix`, rows lie `stride` bytes apart, a little more than they need: rows of
 * 8 KiB exactly would all want the same few places in the first-level cache. All sizes of a layer (inputs,
 * width, hidden, a head's depth) are multiples of VECTOR; only a vocabulary is as large as it is.
 */

#define _DEFAULT_SOURCE /* madvise */

#include <immintrin.h>
#include <math.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ /* of glibc before 2.35 */
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

/* For the tests: what lies between two pieces of working memory must not be touched. */
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define FORBID(memory, bytes) __asan_poison_memory_region(memory, (size_t)(bytes))
#define ALLOW(memory, bytes) __asan_unpoison_memory_region(memory, (size_t)(bytes))
enum { GAP = 64 };
#else
#define FORBID(memory, bytes) ((void)(memory), (void)(bytes))
#define ALLOW(memory, bytes) FORBID(memory, bytes)
enum { GAP = 0 };
#endif

extern void GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags);
extern void GOMP_barrier(void);
extern int omp_get_thread_num(void);

enum { WIDE = 32, TALL = 12 };   /* a tile of results: two registers wide, so many rows tall */
enum { LINE = 64, VECTOR = 16 }; /* bytes of a cache line; float32 of a register */
enum { TASKS_A_THREAD = 8 };     /* a product's parts: so many that the last one holds up little */
enum { STEPS_8BIT = 254 };       /* int8.py's _STEPS where there is VNNI */

enum type { FLOAT32, BFLOAT16, INT8 }; /* of a product's operands; unsigned 8 bits are its rows, signed its weights */

/* A linear layer. Weights lie in panels of WIDE outputs: [panel][inputs / unit][WIDE][unit], where a unit is as
 * many inputs as four bytes hold; outputs are filled up with zeros to a whole panel, here and in all vectors. */
struct linear {
    const void *panels;
    const float *bias;
    const float *scale;   /* INT8: of each output */
    const int32_t *sums;  /* INT8: of each output's weights */
    int64_t inputs, outputs;
    int32_t type, relu;
};

struct norm {
    const float *gain, *bias;
    double epsilon;
};

struct block {
    struct linear qkv, out, first, second;
    struct norm before, between;
    const float *taps; /* [kernel][width]; the middle one has the input itself in it */
    int64_t heads, kernel, left;
};

/* Utterances end to end, and all of them cut into pieces of at most TALL rows. */
struct batch {
    const int64_t *starts;  /* [utterances + 1]: the last is the number of rows */
    const int64_t *pieces;  /* [count][3]: first row, end, utterance */
    int64_t utterances, count, longest;
};

struct matrix {
    char *data;
    int64_t stride;
};

/* Inputs in 8 bits: what was 0 is `zero`, and a step is `scale`; for every row, that of its utterance. */
struct quantised {
    struct matrix steps;
    float *scale;
    int32_t *zero;
};

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t filled_up(int64_t a, int64_t unit) { return divided_up(a, unit) * unit; }
static inline int64_t bytes_of(int type) { return type == FLOAT32 ? 4 : type == BFLOAT16 ? 2 : 1; }
static inline int64_t unit_of(int type) { return 4 / bytes_of(type); }
static inline int64_t units_of(const struct linear *linear) { return linear->inputs / unit_of(linear->type); }

/* VECTOR numbers of a type, as float32. */
static inline __m512 load(const char *from, int type)
{
    if (type == FLOAT32)
        return _mm512_loadu_ps(from);
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

static inline void store(char *to, int type, __m512 value)
{
    if (type == FLOAT32)
        _mm512_storeu_ps(to, value);
    else
        _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(value));
}

/* ---- Threads ----
 *
 * All run the same function. Each takes the next task of a phase while there is one, so that a thread whose
 * core is wanted elsewhere does less; where a phase needs all of an earlier one, they wait for each other. */

enum phase {
    NORMALISE, ROUND_NORMAL, PROJECT, LAY_OUT, ATTEND, MEASURE_MIXED, ROUND_MIXED, PROJECT_OUT,
    REMEMBER, ROUND_AGAIN, WIDEN, MEASURE_HIDDEN, ROUND_HIDDEN, NARROW, PHASES
};

struct team {
    atomic_long taken[PHASES];
    int threads;
};

static inline int64_t take(struct team *team, enum phase phase) { return atomic_fetch_add(&team->taken[phase], 1); }

static void meet(const struct team *team)
{
    if (team->threads > 1)
        GOMP_barrier();
}

static void spread(void (*work)(void *), void *data, int threads)
{
    if (threads > 1)
        GOMP_parallel(work, data, (unsigned)threads, 0);
    else
        work(data);
}

/* ---- Panels ---- */

/* Sixteen rows of sixteen times four bytes to columns, WIDE apart; those from `rows` on are zeros. */
static void transpose(const char *from, int64_t stride, int64_t rows, int32_t *to)
{
    __m512i a[VECTOR], b[VECTOR];
    for (int i = 0; i < VECTOR; i++)
        a[i] = i < rows ? _mm512_loadu_si512(from + i * stride) : _mm512_setzero_si512();
    /* Pairs of rows, then fours: each quarter of a register has four rows of one column. */
    for (int i = 0; i < VECTOR; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < VECTOR; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    /* Then the quarters: 0x88 takes the even ones of two registers, 0xdd the odd ones. */
    for (int i = 0; i < 4; i++) {
        __m512i even = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88), odd = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        __m512i even_below = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        __m512i odd_below = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
        _mm512_storeu_si512(to + i * WIDE, _mm512_shuffle_i32x4(even, even_below, 0x88));
        _mm512_storeu_si512(to + (i + 4) * WIDE, _mm512_shuffle_i32x4(odd, odd_below, 0x88));
        _mm512_storeu_si512(to + (i + 8) * WIDE, _mm512_shuffle_i32x4(even, even_below, 0xdd));
        _mm512_storeu_si512(to + (i + 12) * WIDE, _mm512_shuffle_i32x4(odd, odd_below, 0xdd));
    }
}

/* Rows of `units` times four bytes, WIDE of them or fewer, to a panel [units][WIDE]. */
static void fill_panel(const char *from, int64_t stride, int64_t rows, int64_t units, int32_t *panel)
{
    for (int64_t half = 0; half < WIDE; half += VECTOR, from += VECTOR * stride) {
        int64_t left = least(rows - half, VECTOR), unit = 0;
        for (; unit + VECTOR <= units; unit += VECTOR)
            transpose(from + unit * 4, stride, left, panel + unit * WIDE + half);
        for (; unit < units; unit++)
            for (int64_t row = 0; row < VECTOR; row++) {
                panel[unit * WIDE + half + row] = 0;
                if (row < left)
                    memcpy(panel + unit * WIDE + half + row, from + row * stride + unit * 4, 4);
            }
    }
}

/* ---- Products ----
 *
 * A tile of results stays in registers while the sum runs: of rows, four bytes at a time for all lanes, times
 * 128 bytes of a panel. The sum's order is the same whatever the tile's height is. */

#define TILE(NAME, SUM, ZERO, ADD)                                                                              \
    static inline __attribute__((always_inline)) void NAME##_rows(                                              \
        const int rows, struct matrix a, const char *panel, int64_t steps, SUM (*sums)[2])                      \
    {                                                                                                           \
        SUM held[TALL][2];                                                                                      \
        const char *first = a.data, *second = first + 3 * a.stride;                                             \
        const char *third = second + 3 * a.stride, *fourth = third + 3 * a.stride;                              \
        _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++) held[r][0] = held[r][1] = ZERO();               \
        for (int64_t i = 0; i < steps; i++) {                                                                   \
            __m512i left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + LINE);                 \
            _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++)                                             \
            {                                                                                                   \
                int32_t unit;                                                                                   \
                memcpy(&unit, (r < 3 ? first : r < 6 ? second : r < 9 ? third : fourth) + r % 3 * a.stride, 4); \
                __m512i all = _mm512_set1_epi32(unit);                                                          \
                held[r][0] = ADD(held[r][0], all, left);                                                        \
                held[r][1] = ADD(held[r][1], all, right);                                                       \
            }                                                                                                   \
            panel += 2 * LINE;                                                                                  \
            first += 4, second += 4, third += 4, fourth += 4;                                                   \
        }                                                                                                       \
        _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++) sums[r][0] = held[r][0], sums[r][1] = held[r][1]; \
    }                                                                                                           \
    static void NAME##_tile(int64_t rows, struct matrix a, const char *panel, int64_t steps, SUM (*sums)[2])    \
    {                                                                                                           \
        switch (rows) {                                                                                         \
        case 12: NAME##_rows(12, a, panel, steps, sums); break;                                                 \
        case 11: NAME##_rows(11, a, panel, steps, sums); break;                                                 \
        case 10: NAME##_rows(10, a, panel, steps, sums); break;                                                 \
        case 9: NAME##_rows(9, a, panel, steps, sums); break;                                                   \
        case 8: NAME##_rows(8, a, panel, steps, sums); break;                                                   \
        case 7: NAME##_rows(7, a, panel, steps, sums); break;                                                   \
        case 6: NAME##_rows(6, a, panel, steps, sums); break;                                                   \
        case 5: NAME##_rows(5, a, panel, steps, sums); break;                                                   \
        case 4: NAME##_rows(4, a, panel, steps, sums); break;                                                   \
        case 3: NAME##_rows(3, a, panel, steps, sums); break;                                                   \
        case 2: NAME##_rows(2, a, panel, steps, sums); break;                                                   \
        default: NAME##_rows(1, a, panel, steps, sums);                                                         \
        }                                                                                                       \
    }

#define ADD_FLOAT32(sum, a, b) _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum)
#define ADD_BFLOAT16(sum, a, b) _mm512_dpbf16_ps(sum, (__m512bh)(a), (__m512bh)(b))
#define ADD_INT8(sum, a, b) _mm512_dpbusd_epi32(sum, a, b)

TILE(float32, __m512, _mm512_setzero_ps, ADD_FLOAT32)
TILE(bfloat16, __m512, _mm512_setzero_ps, ADD_BFLOAT16)
TILE(int8, __m512i, _mm512_setzero_si512, ADD_INT8)

static void float_tile(int type, int64_t rows, struct matrix a, const char *panel, int64_t steps, __m512 (*sums)[2])
{
    if (type == FLOAT32)
        float32_tile(rows, a, panel, steps, sums);
    else
        bfloat16_tile(rows, a, panel, steps, sums);
}

/* Where a product's results go: as float32 or bfloat16, with those of `add` added, where there are such. */
struct result {
    struct matrix to;
    int type;
    const float *add; /* [rows][outputs] */
};

static void put(const struct linear *linear, const struct result *result, int64_t row, int64_t column, __m512 value)
{
    int64_t left = linear->outputs - column;
    char *to = result->to.data + row * result->to.stride + column * bytes_of(result->type);
    if (linear->relu)
        value = _mm512_max_ps(value, _mm512_setzero_ps());
    if (left < VECTOR) {
        /* The end of a head's vocabulary. */
        _mm512_mask_storeu_ps(to, left > 0 ? (__mmask16)((1u << left) - 1) : 0, value);
        return;
    }
    if (result->add)
        value = _mm512_add_ps(value, _mm512_loadu_ps(result->add + row * linear->outputs + column));
    store(to, result->type, value);
}

static void int8_results(const struct linear *linear, struct quantised from, int64_t row, int64_t end,
                         int64_t column, const char *panel, const struct result *result)
{
    __m512i sums[TALL][2];
    struct matrix a = {from.steps.data + row * from.steps.stride, from.steps.stride};
    int8_tile(end - row, a, panel, units_of(linear), sums);
    for (int half = 0; half < 2; half++) {
        int64_t at = column + half * VECTOR;
        __m512 bias = _mm512_loadu_ps(linear->bias + at), scale = _mm512_loadu_ps(linear->scale + at);
        __m512i of_zeros = _mm512_loadu_si512(linear->sums + at);
        for (int64_t r = row; r < end; r++) {
            __m512i zero = _mm512_mullo_epi32(_mm512_set1_epi32(from.zero[r]), of_zeros);
            __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[r - row][half], zero));
            __m512 step = _mm512_mul_ps(_mm512_set1_ps(from.scale[r]), scale);
            put(linear, result, r, at, _mm512_fmadd_ps(exact, step, bias));
        }
    }
}

static void float_results(const struct linear *linear, struct matrix from, int64_t row, int64_t end,
                          int64_t column, const char *panel, const struct result *result)
{
    __m512 sums[TALL][2];
    struct matrix a = {from.data + row * from.stride, from.stride};
    float_tile(linear->type, end - row, a, panel, units_of(linear), sums);
    for (int half = 0; half < 2; half++) {
        int64_t at = column + half * VECTOR;
        __m512 bias = _mm512_loadu_ps(linear->bias + at);
        for (int64_t r = row; r < end; r++)
            put(linear, result, r, at, _mm512_add_ps(sums[r - row][half], bias));
    }
}

/* Multiply `rows` rows by a layer's weights: from.steps are the rows themselves where they are not in 8 bits.
 * A task is one panel and, with many threads, a part of the rows. What the next one needs is fetched from
 * memory during this one: a batch uses each weight once, so it comes from there. */
static void product(struct team *team, enum phase phase, const struct linear *linear, struct quantised from,
                    int64_t rows, const struct result *result)
{
    int64_t panels = divided_up(linear->outputs, WIDE);
    int64_t bytes = units_of(linear) * 2 * LINE;
    int64_t tiles = divided_up(rows, TALL);
    int64_t parts = least(divided_up((int64_t)TASKS_A_THREAD * team->threads, panels), tiles);
    int64_t task = take(team, phase);
    while (task < panels * parts) {
        int64_t following = take(team, phase);
        int64_t first = tiles * (task % parts) / parts, last = tiles * (task % parts + 1) / parts;
        int64_t portion = filled_up(divided_up(bytes, last - first), LINE);
        const char *panel = (const char *)linear->panels + task / parts * bytes;
        const char *coming = (const char *)linear->panels + following / parts * bytes;
        int64_t fetched = following < panels * parts ? 0 : bytes;
        for (int64_t tile = first; tile < last; tile++) {
            int64_t row = rows * tile / tiles, end = rows * (tile + 1) / tiles;
            for (int64_t until = least(fetched + portion, bytes); fetched < until; fetched += LINE)
                _mm_prefetch(coming + fetched, _MM_HINT_T1);
            if (linear->type == INT8)
                int8_results(linear, from, row, end, task / parts * WIDE, panel, result);
            else
                float_results(linear, from.steps, row, end, task / parts * WIDE, panel, result);
        }
        task = following;
    }
}

/* ---- Rows ---- */

struct extent {
    float *low, *high; /* of every row, zero included */
};

/* What is no number or infinite counts as zero: an utterance of such gets a bad answer, and not an error. */
static inline __m512 or_zero(__m512 value)
{
    return _mm512_maskz_mov_ps(_knot_mask16(_mm512_fpclass_ps_mask(value, 0x99)), value);
}

static void measure(struct matrix from, int64_t row, int64_t width, struct extent extent)
{
    const float *values = (const float *)(from.data + row * from.stride);
    __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
    for (int64_t c = 0; c < width; c += VECTOR) {
        __m512 value = or_zero(_mm512_loadu_ps(values + c));
        low = _mm512_min_ps(low, value);
        high = _mm512_max_ps(high, value);
    }
    extent.low[row] = _mm512_reduce_min_ps(low);
    extent.high[row] = _mm512_reduce_max_ps(high);
}

/* Layer-normalise a row into one of float32 or bfloat16. */
static void normalise(const struct norm *norm, struct matrix from, int64_t row, int64_t width, struct matrix to,
                      int type)
{
    const float *values = (const float *)(from.data + row * from.stride);
    char *out = to.data + row * to.stride;
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (int64_t c = 0; c < width; c += VECTOR)
        sum = _mm512_add_ps(sum, _mm512_loadu_ps(values + c));
    __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)width);
    for (int64_t c = 0; c < width; c += VECTOR) {
        __m512 off = _mm512_sub_ps(_mm512_loadu_ps(values + c), mean);
        squares = _mm512_fmadd_ps(off, off, squares);
    }
    float variance = _mm512_reduce_add_ps(squares) / (float)width;
    __m512 factor = _mm512_set1_ps((float)(1 / sqrt((double)variance + norm->epsilon)));
    for (int64_t c = 0; c < width; c += VECTOR) {
        __m512 off = _mm512_sub_ps(_mm512_loadu_ps(values + c), mean);
        __m512 gain = _mm512_mul_ps(_mm512_loadu_ps(norm->gain + c), factor);
        store(out + c * bytes_of(type), type, _mm512_fmadd_ps(off, gain, _mm512_loadu_ps(norm->bias + c)));
    }
}

/* Round the rows of a piece to 8 bits, with one scale for its utterance, whose every row has been measured. */
static void quantise(const struct batch *batch, const int64_t *piece, struct matrix from, int64_t width,
                     struct extent extent, struct quantised to)
{
    float low = 0, high = 0;
    for (int64_t row = batch->starts[piece[2]]; row < batch->starts[piece[2] + 1]; row++) {
        low = extent.low[row] < low ? extent.low[row] : low;
        high = extent.high[row] > high ? extent.high[row] : high;
    }
    double scale = fmax(((double)high - low) / STEPS_8BIT, 1e-12);
    int32_t zero = (int32_t)ceil(-low / scale);
    /* The low byte of this and a number is that number rounded: between 2^23 and 2^24 a float32 counts by ones. */
    __m512 offset = _mm512_set1_ps(12582912.0f + (float)zero), inverse = _mm512_set1_ps((float)(1 / scale));
    for (int64_t row = piece[0]; row < piece[1]; row++) {
        const float *values = (const float *)(from.data + row * from.stride);
        char *steps = to.steps.data + row * to.steps.stride;
        for (int64_t c = 0; c < width; c += VECTOR) {
            __m512 value = or_zero(_mm512_loadu_ps(values + c));
            __m512i sum = _mm512_castps_si512(_mm512_fmadd_ps(value, inverse, offset));
            _mm_storeu_si128((__m128i *)(steps + c), _mm512_cvtepi32_epi8(sum));
        }
        to.scale[row] = (float)scale;
        to.zero[row] = zero;
    }
}

/* Add to the rows of a piece of `to` their memory: `kernel` rows of `values` around each, times the taps, within the
 * utterance. Column by column, so that what it reads stays in the first-level cache. */
static void remember(const struct block *block, const struct batch *batch, const int64_t *piece, struct matrix values,
                     int type, struct matrix to)
{
    int64_t width = block->out.outputs, start = batch->starts[piece[2]], end = batch->starts[piece[2] + 1];
    for (int64_t c = 0; c < width; c += VECTOR) {
        for (int64_t row = piece[0]; row < piece[1]; row++) {
            int64_t before = block->left - (row - start), after = end - row + block->left;
            float *out = (float *)(to.data + row * to.stride) + c;
            __m512 sum = _mm512_setzero_ps();
            for (int64_t tap = before > 0 ? before : 0; tap < least(block->kernel, after); tap++) {
                const char *from = values.data + (row + tap - block->left) * values.stride + c * bytes_of(type);
                sum = _mm512_fmadd_ps(load(from, type), _mm512_loadu_ps(block->taps + tap * width + c), sum);
            }
            _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), sum));
        }
    }
}

/* ---- Attention ----
 *
 * Keys and values of each utterance and head are laid out in panels first; then each piece's scores, their
 * softmax and the sum of the values stay in the cache. In bfloat16 sums and softmax are float32 all the same. */

struct attention {
    struct matrix qkv;    /* [rows][query, key, value][heads][depth] */
    struct matrix mixed;  /* [rows][heads][depth] */
    int type, to;         /* of both */
    int64_t heads, depth;
    char *keys, *values;  /* panels of an utterance begin behind those of all rows before it, filled up */
    char *scores;         /* for each thread */
    int64_t scores_bytes; /* of a thread */
};

/* Rows before an utterance's in panels, at most: each utterance's are filled up to WIDE. */
static inline int64_t panel_rows(const struct batch *batch, int64_t utterance)
{
    return batch->starts[utterance] + utterance * WIDE;
}

/* Bytes of a row in panels of keys, which are a head of it; in panels of values those are filled up. */
static inline int64_t key_bytes(const struct attention *job) { return job->depth * bytes_of(job->type); }
static inline int64_t value_bytes(const struct attention *job)
{
    return filled_up(job->depth, WIDE) * bytes_of(job->type);
}

static char *keys_of(const struct attention *job, const struct batch *batch, int64_t utterance, int64_t head)
{
    int64_t rows = filled_up(batch->starts[utterance + 1] - batch->starts[utterance], WIDE);
    return job->keys + (panel_rows(batch, utterance) * job->heads + head * rows) * key_bytes(job);
}

static char *values_of(const struct attention *job, const struct batch *batch, int64_t utterance, int64_t head)
{
    int64_t rows = filled_up(batch->starts[utterance + 1] - batch->starts[utterance], WIDE);
    return job->values + (panel_rows(batch, utterance) * job->heads + head * rows) * value_bytes(job);
}

static void lay_out(const struct attention *job, const struct batch *batch, int64_t utterance, int64_t head)
{
    int64_t start = batch->starts[utterance], length = batch->starts[utterance + 1] - start;
    int64_t bytes = key_bytes(job), units = bytes / 4;
    const char *keys = job->qkv.data + start * job->qkv.stride + (job->heads + head) * bytes;
    const char *values = keys + job->heads * bytes;
    int32_t *to = (int32_t *)keys_of(job, batch, utterance, head);
    for (int64_t first = 0; first < length; first += WIDE, keys += WIDE * job->qkv.stride) {
        fill_panel(keys, job->qkv.stride, least(length - first, WIDE), units, to);
        to += WIDE * units;
    }
    char *panel = values_of(job, batch, utterance, head);
    for (int64_t c = 0; c < job->depth; c += WIDE)
        for (int64_t row = 0; row < length; row += unit_of(job->type))
            for (int64_t half = c; half < c + WIDE; half += VECTOR, panel += LINE) {
                const char *from = values + row * job->qkv.stride + half * bytes_of(job->type);
                __m512i laid = _mm512_setzero_si512();
                if (half < job->depth && job->type == FLOAT32)
                    laid = _mm512_loadu_si512(from);
                else if (half < job->depth) {
                    laid = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
                    if (row + 1 < length) {
                        __m256i odd = _mm256_loadu_si256((const __m256i *)(from + job->qkv.stride));
                        laid = _mm512_or_si512(laid, _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
                    }
                }
                _mm512_storeu_si512(panel, laid);
            }
}

/* e to the power of x, which is not above 0, within two units of the last place; of minus infinity 0. */
static inline __m512 exponential(__m512 x)
{
    static const float terms[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f};
    x = _mm512_max_ps(_mm512_set1_ps(-200), x);
    __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);
    rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), rest);
    __m512 sum = _mm512_set1_ps(1.f / 5040);
    for (int i = 0; i < 7; i++)
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(terms[i]));
    return _mm512_scalef_ps(sum, whole);
}

/* Turn a row of scores into weights that are not divided by their sum yet; give what they are to be multiplied with.
 * Those in bfloat16 take the place of the scores, from the row's begin. */
static float softmax(float *scores, int64_t length, float scale, int type)
{
    __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps(), by = _mm512_set1_ps(scale);
    for (int64_t c = length; c < filled_up(length, WIDE); c++)
        scores[c] = -INFINITY;
    for (int64_t c = 0; c < filled_up(length, WIDE); c += VECTOR)
        most = _mm512_max_ps(most, _mm512_loadu_ps(scores + c));
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (int64_t c = 0; c < filled_up(length, WIDE); c += VECTOR) {
        __m512 weight = exponential(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + c), most), by));
        sum = _mm512_add_ps(sum, weight);
        store((char *)scores + c * bytes_of(type), type, weight);
    }
    return 1 / _mm512_reduce_add_ps(sum);
}

static void attend(const struct attention *job, const struct batch *batch, const int64_t *piece, int64_t head,
                   struct matrix scores)
{
    __m512 sums[TALL][2];
    float factors[TALL];
    int64_t rows = piece[1] - piece[0], length = batch->starts[piece[2] + 1] - batch->starts[piece[2]];
    int64_t bytes = key_bytes(job), units = bytes / 4;
    float scale = 1 / sqrtf((float)job->depth);
    struct matrix query = {job->qkv.data + piece[0] * job->qkv.stride + head * bytes, job->qkv.stride};
    const char *panel = keys_of(job, batch, piece[2], head);
    for (int64_t at = 0; at < length; at += WIDE, panel += units * 2 * LINE) {
        float_tile(job->type, rows, query, panel, units, sums);
        for (int64_t r = 0; r < rows; r++) {
            float *row = (float *)(scores.data + r * scores.stride) + at;
            _mm512_storeu_ps(row, sums[r][0]);
            _mm512_storeu_ps(row + VECTOR, sums[r][1]);
        }
    }
    for (int64_t r = 0; r < rows; r++)
        factors[r] = softmax((float *)(scores.data + r * scores.stride), length, scale, job->type);
    int64_t steps = divided_up(length, unit_of(job->type));
    panel = values_of(job, batch, piece[2], head);
    for (int64_t c = 0; c < job->depth; c += WIDE, panel += steps * 2 * LINE) {
        float_tile(job->type, rows, scores, panel, steps, sums);
        for (int64_t r = 0; r < rows; r++)
            for (int half = 0; half < 2 && c + half * VECTOR < job->depth; half++) {
                int64_t column = head * job->depth + c + half * VECTOR;
                char *to = job->mixed.data + (piece[0] + r) * job->mixed.stride + column * bytes_of(job->to);
                store(to, job->to, _mm512_mul_ps(sums[r][half], _mm512_set1_ps(factors[r])));
            }
    }
}

/* ---- What a layer and a linear layer alone have in common ---- */

struct job {
    struct team team;
    const struct batch *batch;
    struct matrix rows, result;
    struct extent extent;
    struct quantised input; /* of the product that is next, in 8 bits */
};

static const int64_t *piece_of(const struct batch *batch, int64_t number) { return batch->pieces + 3 * number; }

static void measure_all(struct job *job, enum phase phase, int type, struct matrix from, int64_t width)
{
    if (type != INT8)
        return;
    for (int64_t i; (i = take(&job->team, phase)) < job->batch->count;)
        for (int64_t row = piece_of(job->batch, i)[0]; row < piece_of(job->batch, i)[1]; row++)
            measure(from, row, width, job->extent);
    meet(&job->team);
}

/* What the next product takes: the rows themselves, or, once they have been measured, in 8 bits. */
static struct quantised input_of(struct job *job, enum phase phase, int type, struct matrix from, int64_t width)
{
    if (type != INT8)
        return (struct quantised){from, NULL, NULL};
    for (int64_t i; (i = take(&job->team, phase)) < job->batch->count;)
        quantise(job->batch, piece_of(job->batch, i), from, width, job->extent, job->input);
    meet(&job->team);
    return job->input;
}

/* Cuts pieces off a stretch of memory; without one, it only counts. */
struct room {
    char *at;
    int64_t used;
};

static void *cut(struct room *room, int64_t bytes)
{
    char *piece = room->at ? room->at + room->used : NULL;
    room->used += filled_up(bytes, LINE) + GAP;
    if (piece)
        FORBID(piece + bytes, room->at + room->used - piece - bytes);
    return piece;
}

/* Rows a cache line longer than they need: see the top of this file. */
static struct matrix cut_rows(struct room *room, int64_t rows, int64_t bytes)
{
    int64_t stride = filled_up(bytes, LINE) + LINE;
    return (struct matrix){cut(room, rows * stride), stride};
}

static void cut_input(struct room *room, struct job *job, int64_t width)
{
    int64_t rows = job->batch->starts[job->batch->utterances];
    job->input.steps = cut_rows(room, rows, width);
    job->input.scale = cut(room, rows * 4);
    job->input.zero = cut(room, rows * 4);
    job->extent.low = cut(room, rows * 4);
    job->extent.high = cut(room, rows * 4);
}

/* ---- A layer ---- */

struct layer {
    struct job job;
    const struct block *block;
    struct matrix normal;   /* a norm's output */
    struct matrix attended; /* with the residual */
    struct matrix hidden;
    struct attention attention;
};

static void run_layer(void *data)
{
    struct layer *layer = data;
    struct job *job = &layer->job;
    struct team *team = &job->team;
    const struct block *block = layer->block;
    const struct batch *batch = job->batch;
    const struct attention *attention = &layer->attention;
    int type = block->qkv.type, between = attention->to;
    int64_t rows = batch->starts[batch->utterances], inputs = block->qkv.inputs, width = block->out.outputs;
    struct matrix scores = {attention->scores, filled_up(batch->longest, WIDE) * 4 + LINE};
    if (team->threads > 1)
        scores.data += omp_get_thread_num() * attention->scores_bytes;

    for (int64_t i; (i = take(team, NORMALISE)) < batch->count;)
        for (int64_t row = piece_of(batch, i)[0]; row < piece_of(batch, i)[1]; row++) {
            normalise(&block->before, job->rows, row, inputs, layer->normal, between);
            if (type == INT8)
                measure(layer->normal, row, inputs, job->extent);
        }
    meet(team);
    struct quantised input = input_of(job, ROUND_NORMAL, type, layer->normal, inputs);
    product(team, PROJECT, &block->qkv, input, rows, &(struct result){attention->qkv, attention->type, NULL});
    meet(team);

    for (int64_t i; (i = take(team, LAY_OUT)) < batch->utterances * attention->heads;)
        lay_out(attention, batch, i / attention->heads, i % attention->heads);
    meet(team);
    for (int64_t i; (i = take(team, ATTEND)) < batch->count * attention->heads;)
        attend(attention, batch, piece_of(batch, i / attention->heads), i % attention->heads, scores);
    meet(team);
    measure_all(job, MEASURE_MIXED, type, attention->mixed, width);
    input = input_of(job, ROUND_MIXED, type, attention->mixed, width);
    const float *residual = inputs == width ? (const float *)job->rows.data : NULL;
    product(team, PROJECT_OUT, &block->out, input, rows, &(struct result){layer->attended, FLOAT32, residual});
    meet(team);

    struct matrix values = {attention->qkv.data + 2 * width * bytes_of(attention->type), attention->qkv.stride};
    for (int64_t i; (i = take(team, REMEMBER)) < batch->count;) {
        remember(block, batch, piece_of(batch, i), values, attention->type, layer->attended);
        for (int64_t row = piece_of(batch, i)[0]; row < piece_of(batch, i)[1]; row++) {
            normalise(&block->between, layer->attended, row, width, layer->normal, between);
            if (type == INT8)
                measure(layer->normal, row, width, job->extent);
        }
    }
    meet(team);
    input = input_of(job, ROUND_AGAIN, type, layer->normal, width);
    product(team, WIDEN, &block->first, input, rows, &(struct result){layer->hidden, between, NULL});
    meet(team);
    measure_all(job, MEASURE_HIDDEN, type, layer->hidden, block->first.outputs);
    input = input_of(job, ROUND_HIDDEN, type, layer->hidden, block->first.outputs);
    product(team, NARROW, &block->second, input, rows,
            &(struct result){job->result, FLOAT32, (const float *)layer->attended.data});
}

static int64_t furnish(struct layer *layer, char *memory)
{
    const struct block *block = layer->block;
    const struct batch *batch = layer->job.batch;
    struct attention *attention = &layer->attention;
    struct room room = {memory, 0};
    int type = block->qkv.type, between = type == BFLOAT16 ? BFLOAT16 : FLOAT32;
    int64_t rows = batch->starts[batch->utterances], width = block->out.outputs;
    int64_t inputs = block->qkv.inputs > width ? block->qkv.inputs : width, hidden = block->first.outputs;
    int64_t filled = panel_rows(batch, batch->utterances) * block->heads;
    attention->type = type == FLOAT32 ? FLOAT32 : BFLOAT16;
    attention->to = between;
    attention->heads = block->heads;
    attention->depth = width / block->heads;
    layer->normal = cut_rows(&room, rows, inputs * bytes_of(between));
    /* No space between these: the last product adds them as they lie. */
    layer->attended = (struct matrix){cut(&room, rows * width * 4), width * 4};
    layer->hidden = cut_rows(&room, rows, hidden * bytes_of(between));
    attention->qkv = cut_rows(&room, rows, 3 * width * bytes_of(attention->type));
    attention->mixed = cut_rows(&room, rows, width * bytes_of(between));
    attention->keys = cut(&room, filled * key_bytes(attention));
    attention->values = cut(&room, filled * value_bytes(attention));
    int64_t scores = TALL * (filled_up(batch->longest, WIDE) * 4 + LINE);
    attention->scores_bytes = scores + GAP;
    attention->scores = cut(&room, scores);
    for (int i = 1; i < layer->job.team.threads; i++)
        cut(&room, scores);
    if (type == INT8)
        cut_input(&room, &layer->job, hidden > inputs ? hidden : inputs);
    return room.used;
}

/* Bytes of memory that sensevoice_block works in. */
int64_t sensevoice_block_room(const struct block *block, const struct batch *batch, int threads)
{
    struct layer layer = {.block = block, .job = {.batch = batch, .team = {.threads = threads}}};
    return furnish(&layer, NULL);
}

/* rows [N][inputs] to result [N][width], both float32 and not the same memory. */
void sensevoice_block(const struct block *block, const struct batch *batch, int threads, float *rows, float *result,
                      char *room)
{
    struct layer layer = {.block = block, .job = {.batch = batch, .team = {.threads = threads}}};
    int64_t bytes = furnish(&layer, room);
    layer.job.rows = (struct matrix){(char *)rows, block->qkv.inputs * 4};
    layer.job.result = (struct matrix){(char *)result, block->out.outputs * 4};
    spread(run_layer, &layer, threads);
    ALLOW(room, bytes);
}

/* ---- A linear layer alone ---- */

struct alone {
    struct job job;
    const struct linear *linear;
};

static void run_alone(void *data)
{
    struct alone *alone = data;
    struct job *job = &alone->job;
    const struct linear *linear = alone->linear;
    measure_all(job, MEASURE_MIXED, linear->type, job->rows, linear->inputs);
    struct quantised input = input_of(job, ROUND_MIXED, linear->type, job->rows, linear->inputs);
    product(&job->team, PROJECT, linear, input, job->batch->starts[job->batch->utterances],
            &(struct result){job->result, FLOAT32, NULL});
}

static int64_t furnish_alone(struct alone *alone, char *memory)
{
    struct room room = {memory, 0};
    if (alone->linear->type == INT8)
        cut_input(&room, &alone->job, alone->linear->inputs);
    return room.used;
}

/* Bytes of memory that sensevoice_linear works in. */
int64_t sensevoice_linear_room(const struct linear *linear, const struct batch *batch, int threads)
{
    struct alone alone = {.linear = linear, .job = {.batch = batch, .team = {.threads = threads}}};
    return furnish_alone(&alone, NULL);
}

/* rows [N][inputs] in float32 to result [N][outputs]; for layers of FLOAT32 and INT8. */
void sensevoice_linear(const struct linear *linear, const struct batch *batch, int threads, float *rows, float *result,
                       char *room)
{
    struct alone alone = {.linear = linear, .job = {.batch = batch, .team = {.threads = threads}}};
    int64_t bytes = furnish_alone(&alone, room);
    alone.job.rows = (struct matrix){(char *)rows, linear->inputs * 4};
    alone.job.result = (struct matrix){(char *)result, linear->outputs * 4};
    spread(run_alone, &alone, threads);
    ALLOW(room, bytes);
}

/* ---- Before all that ---- */

/* Have the pages of a stretch of memory made or mapped at once: one by one each costs microseconds, and those of a
 * model half a second. A kernel before 5.14 cannot, and they come one by one. */
static void populate(const void *memory, int64_t bytes, int advice)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)memory / page * page;
    madvise((void *)begin, (uintptr_t)memory + (uintptr_t)bytes - begin, advice);
}

/* Weights [outputs][units] of four bytes to panels [outputs / WIDE][units][WIDE]; the last one filled up with 0. */
void sensevoice_lay_out(const int32_t *weights, int64_t outputs, int64_t units, int32_t *panels)
{
    populate(weights, outputs * units * 4, MADV_POPULATE_READ);
    populate(panels, filled_up(outputs, WIDE) * units * 4, MADV_POPULATE_WRITE);
    for (int64_t first = 0; first < outputs; first += WIDE)
        fill_panel((const char *)(weights + first * units), units * 4, least(outputs - first, WIDE), units,
                   panels + first * units);
}

/* What this was built from: the library of another version has other structures. */
const char *sensevoice_source(void) { return SOURCE; }

/* Whether this processor has what all of the above is compiled for. */
int sensevoice_supported(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
