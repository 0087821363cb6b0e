/* One form of the kernels. Who includes this has chosen the instruction set, and defined FORM, its name, LANES, the floats
 * of a register, and ROWS: of so many rows of a panel's width the registers hold the sums.
 */
#include "kernels.h"

#include <stdint.h>

#define PARTS (WIDTH / LANES)
#define EACH_PART _Pragma("GCC unroll 8") for (int part = 0; part < PARTS; part++)
#define TERMS 256 /* of a sum that are added up before it goes to memory */

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

static inline Floats load(const float *at) { return *(const Floats *)at; }
static inline void store(float *at, Floats values) { *(Floats *)at = values; }
static inline Floats all(float value) { return value - (Floats){0}; }
static inline Floats choose(Ints which, Floats yes, Floats no) {
    return (Floats)((which & (Ints)yes) | (~which & (Ints)no));
}
static inline Floats larger(Floats a, Floats b) { return choose(a > b, a, b); }
static inline Floats smaller(Floats a, Floats b) { return choose(a < b, a, b); }

/* Sums are taken over 256 terms at a time, one after the other: that is the order of ONNX Runtime's own MatMul. */
#define DEFINE_TILE(R)                                                                                    \
    static void tile##R(const float *x, long x_step, const float *w, float *y, long y_step, long terms) { \
        for (long start = 0; start < terms; start += TERMS) {                                             \
            Floats sums[R][PARTS];                                                                        \
            for (int r = 0; r < R; r++)                                                                   \
                EACH_PART sums[r][part] = (Floats){0};                                                    \
            long end = start + TERMS < terms ? start + TERMS : terms;                                     \
            for (long k = start; k < end; k++, w += WIDTH) {                                              \
                __builtin_prefetch(w + 64 * WIDTH);                                                       \
                __builtin_prefetch(w + 64 * WIDTH + 16);                                                  \
                Floats weights[PARTS];                                                                    \
                EACH_PART weights[part] = load(w + part * LANES);                                         \
                _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) {                                    \
                    Floats value = all(x[r * x_step + k]);                                                \
                    EACH_PART sums[r][part] += value * weights[part];                                     \
                }                                                                                         \
            }                                                                                             \
            for (int r = 0; r < R; r++) {                                                                 \
                EACH_PART {                                                                               \
                    float *at = y + r * y_step + part * LANES;                                            \
                    if (start)                                                                            \
                        sums[r][part] = load(at) + sums[r][part];                                         \
                    store(at, sums[r][part]);                                                             \
                }                                                                                         \
            }                                                                                             \
        }                                                                                                 \
    }
typedef void (*Tile)(const float *, long, const float *, float *, long, long);
DEFINE_TILE(1)
DEFINE_TILE(2)
DEFINE_TILE(3)
#if ROWS == 12
DEFINE_TILE(4)
DEFINE_TILE(5)
DEFINE_TILE(6)
DEFINE_TILE(7)
DEFINE_TILE(8)
DEFINE_TILE(9)
DEFINE_TILE(10)
DEFINE_TILE(11)
DEFINE_TILE(12)
static const Tile TILES[ROWS] = {tile1, tile2, tile3, tile4, tile5, tile6, tile7, tile8, tile9, tile10, tile11, tile12};
#else
static const Tile TILES[ROWS] = {tile1, tile2, tile3};
#endif

static void multiply(const float *x, long x_step, const float *panel, float *y, long y_step, long terms, long rows) {
    TILES[rows - 1](x, x_step, panel, y, y_step, terms);
}

/* erf(z) = z P(z²) / Q(z²) for |z| <= 4, a fit with a relative error of 3e-8; beyond, it is 1 in float32. */
static inline Floats gelu(Floats x) {
    Floats z = smaller(larger(x * 0.70710678f, all(-4.0f)), all(4.0f)), u = z * z;
    Floats p = all(1.98670045392646e-06f), q = all(3.7417903513414785e-05f);
    p = p * u + 0.0002845389535650611f;
    p = p * u + 0.0038827520329505205f;
    p = p * u + 0.05309988558292389f;
    p = p * u + 0.193533256649971f;
    p = p * u + 1.1283791065216064f;
    q = q * u + 0.0011854018084704876f;
    q = q * u + 0.015206079930067062f;
    q = q * u + 0.11534484475851059f;
    q = q * u + 0.5048469305038452f;
    q = q * u + 1.0f;
    Floats half = x * 0.5f;
    return half + half * (z * p / q);
}

static void finish(float *y, long y_step, long rows, const float *bias, const float *residual, int activation) {
    for (long r = 0; r < rows; r++, y += y_step) {
        EACH_PART {
            long at = part * LANES;
            Floats values = load(y + at);
            if (bias)
                values += load(bias + at);
            if (activation == GELU)
                values = gelu(values);
            if (residual)
                values += load(residual + r * y_step + at);
            store(y + at, values);
        }
    }
}

/* e^x for x <= 0: 2^n e^r with |r| <= ln 2 / 2, a fit of e^r with a relative error of 2e-9. */
static inline Floats exponential(Floats x) {
    x = larger(x, all(-87.0f));
    Floats shifted = x * 1.44269504f + 12582912.0f; /* the sum's last bits are the nearest whole number */
    Floats n = shifted - 12582912.0f, r = x - n * 0.693145752f - n * 1.42860677e-06f;
    Floats p = all(0.0013836831785738468f);
    p = p * r + 0.008374824188649654f;
    p = p * r + 0.04166822507977486f;
    p = p * r + 0.16666419804096222f;
    p = p * r + 0.49999991059303284f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return (Floats)((Ints)p + ((Ints)shifted << 23));
}

#ifdef __clang__
#define SHUFFLE(values, ...) __builtin_shufflevector(values, values, __VA_ARGS__)
#else
#define SHUFFLE(values, ...) __builtin_shuffle(values, (Ints){__VA_ARGS__})
#endif
#if LANES == 16
#define HALVES(FOLD)                                                                                          \
    FOLD(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)                                                \
    FOLD(4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)                                                \
    FOLD(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)                                                \
    FOLD(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#else
#define HALVES(FOLD) FOLD(4, 5, 6, 7, 0, 1, 2, 3) FOLD(2, 3, 0, 1, 6, 7, 4, 5) FOLD(1, 0, 3, 2, 5, 4, 7, 6)
#endif

static inline float total(Floats values) {
#define ADD(...) values += SHUFFLE(values, __VA_ARGS__);
    HALVES(ADD)
    return values[0];
}

static inline float largest(Floats values) {
#define KEEP_LARGER(...) values = larger(values, SHUFFLE(values, __VA_ARGS__));
    HALVES(KEEP_LARGER)
    return values[0];
}

static void exponentials(float *y, long y_step, long rows, long count, float scale, float *inverse) {
    Ints lanes;
    for (int lane = 0; lane < LANES; lane++)
        lanes[lane] = lane;
    for (long r = 0; r < rows; r++, y += y_step) {
        Floats most = all(-3.4e38f), sums = {0};
        for (long k = 0; k < count; k += LANES)
            most = larger(most, choose(lanes < (int32_t)(count - k), load(y + k), most));
        float top = largest(most);
        for (long k = 0; k < count; k += LANES) {
            Floats values = choose(lanes < (int32_t)(count - k), exponential((load(y + k) - top) * scale), (Floats){0});
            sums += values;
            store(y + k, values);
        }
        inverse[r] = 1.0f / total(sums);
    }
}

static void multiply_by(float *y, long y_step, long rows, const float *factors) {
    for (long r = 0; r < rows; r++, y += y_step) {
        EACH_PART store(y + part * LANES, load(y + part * LANES) * factors[r]);
    }
}

static void normalise(const float *x, float *y, long columns, const float *scale, const float *bias, float epsilon) {
    Floats sums[PARTS] = {{0}}, squares[PARTS] = {{0}};
    for (long at = 0; at < columns; at += WIDTH)
        EACH_PART sums[part] += load(x + at + part * LANES);
    for (int part = 1; part < PARTS; part++)
        sums[0] += sums[part];
    float mean = total(sums[0]) / (float)columns;
    for (long at = 0; at < columns; at += WIDTH) {
        EACH_PART {
            Floats apart = load(x + at + part * LANES) - mean;
            squares[part] += apart * apart;
        }
    }
    for (int part = 1; part < PARTS; part++)
        squares[0] += squares[part];
    float factor = 1.0f / __builtin_sqrtf(total(squares[0]) / (float)columns + epsilon);
    for (long at = 0; at < columns; at += LANES)
        store(y + at, (load(x + at) - mean) * factor * load(scale + at) + load(bias + at));
}

const Kernels FORM = {ROWS, multiply, finish, exponentials, multiply_by, normalise};
