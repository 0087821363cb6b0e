/* The operator headrace.Linear for ONNX Runtime: rows of float32 times constant weights.
 *
 * Y[M, N] = X[M, K] W[K, N]. The weights come as panels of 32 columns, [N / 32, K, 32], so that each is read once and
 * from front to back, whatever M is; up to 12 rows are computed at a time, so that the sums of all of them stay
 * in registers. Each sum is taken over 256 terms at a time, one after the other: that is the order of ONNX Runtime's own
 * MatMul, with which the results agree bit for bit where that uses AVX-512 too.
 *
 * Functions of ONNX Runtime are called by their place in its table (OrtApi, onnxruntime_c_api.h), which never changes.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define API_VERSION 17 /* the first that has ParallelFor */
#define WIDTH 32       /* columns of a panel */
#define ROWS 12        /* rows computed at a time: 24 of 32 registers hold their sums */
#define TERMS 256      /* of a sum that are added up before it goes to memory */
#define MOST_SHARES 64 /* of an operator: a thread that is held up leaves the rest to others */
#define MOST_RANK 8
#define EXPORTED __attribute__((visibility("default")))

enum { FAILED = 1, INVALID_ARGUMENT = 2, FLOAT = 1, REQUIRED = 0, DEFAULT_MEMORY = 0 };

typedef struct Status Status; /* NULL is success */
typedef struct Value Value;
typedef struct Shape Shape;
typedef struct Context Context;
typedef struct Info Info;
typedef struct Domain Domain;
typedef struct Options Options;
typedef void (*Task)(void *, size_t);

typedef struct {
    void *f0[26];
    Status *(*CreateCustomOpDomain)(const char *, Domain **); /* 26 */
    Status *(*CustomOpDomain_Add)(Domain *, void *);
    Status *(*AddCustomOpDomain)(Options *, Domain *);
    void *f29[22];
    Status *(*GetTensorMutableData)(const Value *, void **); /* 51 */
    void *f52[9];
    Status *(*GetDimensionsCount)(const Shape *, size_t *); /* 61 */
    Status *(*GetDimensions)(const Shape *, int64_t *, size_t);
    void *f63[2];
    Status *(*GetTensorTypeAndShape)(const Value *, Shape **); /* 65 */
    void *f66[24];
    Status *(*GetInput)(const Context *, size_t, const Value **); /* 90 */
    Status *(*GetOutput)(Context *, size_t, const int64_t *, size_t, Value **);
    void *f92[7];
    void (*ReleaseShape)(Shape *); /* 99 */
    void *f100[174];
    Status *(*ParallelFor)(const Context *, Task, size_t, size_t, void *); /* 274 */
} Api;

typedef struct {
    const Api *(*GetApi)(uint32_t);
    const char *(*GetVersionString)(void);
} ApiBase;

typedef struct Operator Operator;
struct Operator { /* OrtCustomOp of version 17 */
    uint32_t version;
    void *(*CreateKernel)(const Operator *, const Api *, const Info *);
    const char *(*GetName)(const Operator *);
    const char *(*GetExecutionProviderType)(const Operator *);
    int (*GetInputType)(const Operator *, size_t);
    size_t (*GetInputTypeCount)(const Operator *);
    int (*GetOutputType)(const Operator *, size_t);
    size_t (*GetOutputTypeCount)(const Operator *);
    void (*KernelCompute)(void *, Context *);
    void (*KernelDestroy)(void *);
    int (*GetInputCharacteristic)(const Operator *, size_t);
    int (*GetOutputCharacteristic)(const Operator *, size_t);
    int (*GetInputMemoryType)(const Operator *, size_t);
    int (*GetVariadicInputMinArity)(const Operator *);
    int (*GetVariadicInputHomogeneity)(const Operator *);
    int (*GetVariadicOutputMinArity)(const Operator *);
    int (*GetVariadicOutputHomogeneity)(const Operator *);
    Status *(*CreateKernelV2)(const Operator *, const Api *, const Info *, void **);
    Status *(*KernelComputeV2)(void *, Context *);
    Status *(*InferOutputShape)(const Operator *, void *);
    int (*GetStartVersion)(const Operator *);
    int (*GetEndVersion)(const Operator *);
    void *aliases[4];
};

static Status *create_status(const Api *api, int code, const char *text) {
    return ((Status * (*)(int, const char *)) api->f0[0])(code, text);
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define AVX512 __attribute__((target("avx512f")))

/* R rows of X, from x on, times one panel w: the sums go to y. */
#define DEFINE_KERNEL(R)                                                                                      \
    AVX512 static void rows##R(const float *x, const float *w, float *y, long terms, long columns) {          \
        for (long start = 0; start < terms; start += TERMS) {                                                 \
            __m512 sums[R][2];                                                                                \
            for (int r = 0; r < R; r++)                                                                       \
                sums[r][0] = sums[r][1] = _mm512_setzero_ps();                                                \
            long end = start + TERMS < terms ? start + TERMS : terms;                                         \
            for (long k = start; k < end; k++, w += WIDTH) {                                                  \
                _mm_prefetch((const char *)(w + 16 * WIDTH), _MM_HINT_T0);                                    \
                _mm_prefetch((const char *)(w + 16 * WIDTH + 16), _MM_HINT_T0);                               \
                __m512 left = _mm512_loadu_ps(w), right = _mm512_loadu_ps(w + 16);                            \
                _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) {                                        \
                    __m512 value = _mm512_set1_ps(x[r * terms + k]);                                          \
                    sums[r][0] = _mm512_fmadd_ps(value, left, sums[r][0]);                                    \
                    sums[r][1] = _mm512_fmadd_ps(value, right, sums[r][1]);                                   \
                }                                                                                             \
            }                                                                                                 \
            for (int r = 0; r < R; r++) {                                                                     \
                float *at = y + r * columns;                                                                  \
                if (start) {                                                                                  \
                    sums[r][0] = _mm512_add_ps(_mm512_loadu_ps(at), sums[r][0]);                              \
                    sums[r][1] = _mm512_add_ps(_mm512_loadu_ps(at + 16), sums[r][1]);                         \
                }                                                                                             \
                _mm512_storeu_ps(at, sums[r][0]);                                                             \
                _mm512_storeu_ps(at + 16, sums[r][1]);                                                        \
            }                                                                                                 \
        }                                                                                                     \
    }
DEFINE_KERNEL(1)
DEFINE_KERNEL(2)
DEFINE_KERNEL(3)
DEFINE_KERNEL(4)
DEFINE_KERNEL(5)
DEFINE_KERNEL(6)
DEFINE_KERNEL(7)
DEFINE_KERNEL(8)
DEFINE_KERNEL(9)
DEFINE_KERNEL(10)
DEFINE_KERNEL(11)
DEFINE_KERNEL(12)

typedef void (*Kernel)(const float *, const float *, float *, long, long);
static const Kernel KERNELS[ROWS] = {rows1, rows2, rows3, rows4, rows5, rows6,
                                     rows7, rows8, rows9, rows10, rows11, rows12};

static int supported(void) { return __builtin_cpu_supports("avx512f"); }
#else
typedef void (*Kernel)(const float *, const float *, float *, long, long);
static const Kernel KERNELS[ROWS];
static int supported(void) { return 0; }
#endif

typedef struct {
    const float *x, *w;
    float *y;
    long rows, terms, panels, shares;
} Product;

/* Compute the panels of one share, with as equal numbers of rows at a time as can be. */
static void compute_share(void *data, size_t share) {
    const Product *job = data;
    long end = job->panels * ((long)share + 1) / job->shares;
    long groups = (job->rows + ROWS - 1) / ROWS, columns = job->panels * WIDTH;
    for (long panel = job->panels * (long)share / job->shares; panel < end; panel++) {
        for (long group = 0; group < groups; group++) {
            long first = job->rows * group / groups, rows = job->rows * (group + 1) / groups - first;
            KERNELS[rows - 1](job->x + first * job->terms, job->w + panel * job->terms * WIDTH,
                              job->y + first * columns + panel * WIDTH, job->terms, columns);
        }
    }
}

static Status *read_shape(const Api *api, const Value *value, int64_t *sizes, size_t *rank) {
    Shape *shape = NULL;
    Status *status = api->GetTensorTypeAndShape(value, &shape);
    if (status)
        return status;
    status = api->GetDimensionsCount(shape, rank);
    if (!status && (*rank < 1 || *rank > MOST_RANK))
        status = create_status(api, INVALID_ARGUMENT, "Linear takes 1 to 8 dimensions");
    if (!status)
        status = api->GetDimensions(shape, sizes, *rank);
    api->ReleaseShape(shape);
    return status;
}

static Status *compute(void *kernel, Context *context) {
    const Api *api = kernel;
    const Value *x = NULL, *w = NULL;
    Value *y = NULL;
    int64_t sizes[MOST_RANK], weights[MOST_RANK];
    size_t rank = 0, weights_rank = 0;
    Status *status;
    if ((status = api->GetInput(context, 0, &x)) || (status = api->GetInput(context, 1, &w)) ||
        (status = read_shape(api, x, sizes, &rank)) || (status = read_shape(api, w, weights, &weights_rank)))
        return status;
    if (weights_rank != 3 || weights[2] != WIDTH || weights[1] != sizes[rank - 1])
        return create_status(api, INVALID_ARGUMENT, "Linear takes weights [columns / 32, width of its input, 32]");
    Product job = {.rows = 1, .terms = weights[1], .panels = weights[0]};
    for (size_t at = 0; at + 1 < rank; at++)
        job.rows *= sizes[at];
    sizes[rank - 1] = weights[0] * WIDTH;
    if ((status = api->GetOutput(context, 0, sizes, rank, &y)) ||
        (status = api->GetTensorMutableData(x, (void **)&job.x)) ||
        (status = api->GetTensorMutableData(w, (void **)&job.w)) ||
        (status = api->GetTensorMutableData(y, (void **)&job.y)))
        return status;
    if (!job.rows || !job.panels)
        return NULL;
    job.shares = job.panels < MOST_SHARES ? job.panels : MOST_SHARES;
    return api->ParallelFor(context, compute_share, (size_t)job.shares, 0, &job);
}

static Status *create(const Operator *self, const Api *api, const Info *info, void **kernel) {
    (void)self, (void)info;
    *kernel = (void *)api; /* it keeps nothing else */
    return NULL;
}

static void destroy(void *kernel) { (void)kernel; }
static const char *name(const Operator *self) { return (void)self, "Linear"; }
static const char *provider(const Operator *self) { return (void)self, NULL; }
static int floats(const Operator *self, size_t at) { return (void)self, (void)at, FLOAT; }
static size_t two(const Operator *self) { return (void)self, 2; }
static size_t one(const Operator *self) { return (void)self, 1; }
static int required(const Operator *self, size_t at) { return (void)self, (void)at, REQUIRED; }
static int memory(const Operator *self, size_t at) { return (void)self, (void)at, DEFAULT_MEMORY; }
static int first(const Operator *self) { return (void)self, 1; }
static int last(const Operator *self) { return (void)self, INT32_MAX; }

static Operator LINEAR = {
    .version = API_VERSION,
    .GetName = name,
    .GetExecutionProviderType = provider,
    .GetInputType = floats,
    .GetInputTypeCount = two,
    .GetOutputType = floats,
    .GetOutputTypeCount = one,
    .KernelDestroy = destroy,
    .GetInputCharacteristic = required,
    .GetOutputCharacteristic = required,
    .GetInputMemoryType = memory,
    .GetVariadicInputMinArity = first,
    .GetVariadicInputHomogeneity = first,
    .GetVariadicOutputMinArity = first,
    .GetVariadicOutputHomogeneity = first,
    .CreateKernelV2 = create,
    .KernelComputeV2 = compute,
    .GetStartVersion = first,
    .GetEndVersion = last,
};

/* What ONNX Runtime looks for in a library of operators. */
EXPORTED Status *RegisterCustomOps(Options *options, const ApiBase *base) {
    static Domain *domain; /* of the process: sessions that use it are never all gone before it ends */
    const Api *api = base->GetApi(API_VERSION);
    Status *status;
    if (!supported())
        return create_status(api, FAILED, "Linear needs a processor with AVX-512");
    if (!domain) {
        Domain *made = NULL;
        if ((status = api->CreateCustomOpDomain("headrace", &made)) ||
            (status = api->CustomOpDomain_Add(made, &LINEAR)))
            return status;
        domain = made;
    }
    return api->AddCustomOpDomain(options, domain);
}
