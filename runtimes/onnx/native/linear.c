/* headrace.Linear: Y[…, N] = activation(X[…, K] W[K, N] + bias) + residual.
 *
 * W comes as panels of 32 columns, [N / 32, K, 32], so that weights are read from front to back. bias [N] and residual
 * (as Y) may be left out. The attribute `activation` is 0 (none) or 1 (GELU).
 */
#include "kernels.h"
#include "operators.h"

#include <stdlib.h>

#define MOST_SHARES 64          /* of an operator: a thread that is held up leaves the rest to others */
#define CHUNK_BYTES (512 << 10) /* of X that stay in the second cache while all panels pass */

typedef struct {
    const Api *api;
    const Kernels *kernels;
    int activation;
} Linear;

typedef struct {
    const Linear *linear;
    const float *x, *w, *bias, *residual;
    float *y;
    long rows, terms, panels; /* sizes of the product */
    long chunks, shares;      /* the rows are cut into chunks, and the panels of each into shares */
} Product;

static void compute_share(void *data, size_t at) {
    const Product *job = data;
    const Kernels *kernels = job->linear->kernels;
    long chunk = (long)at / job->shares, share = (long)at % job->shares, columns = job->panels * WIDTH;
    long first = job->rows * chunk / job->chunks, rows = job->rows * (chunk + 1) / job->chunks - first;
    long tiles = (rows + kernels->rows - 1) / kernels->rows;
    long end = job->panels * (share + 1) / job->shares;
    for (long panel = job->panels * share / job->shares; panel < end; panel++) {
        const float *weights = job->w + panel * job->terms * WIDTH;
        const float *bias = job->bias ? job->bias + panel * WIDTH : NULL;
        for (long tile = 0; tile < tiles; tile++) { /* of as equal sizes as can be */
            long row = rows * tile / tiles, count = rows * (tile + 1) / tiles - row;
            long target = (first + row) * columns + panel * WIDTH;
            kernels->multiply(job->x + (first + row) * job->terms, job->terms, weights, job->y + target, columns,
                              job->terms, count);
            if (bias || job->residual || job->linear->activation)
                kernels->finish(job->y + target, columns, count, bias, job->residual ? job->residual + target : NULL,
                                job->linear->activation);
        }
    }
}

static Status *compute(void *kernel, Context *context) {
    const Linear *linear = kernel;
    const Api *api = linear->api;
    Tensor x, w, bias, residual;
    Status *status;
    if ((status = read_input(api, context, 0, &x)) || (status = read_input(api, context, 1, &w)) ||
        (status = read_input(api, context, 2, &bias)) || (status = read_input(api, context, 3, &residual)))
        return status;
    if (x.rank < 1 || w.rank != 3 || w.sizes[2] != WIDTH || w.sizes[1] != x.sizes[x.rank - 1])
        return api->CreateStatus(INVALID_ARGUMENT, "Linear takes weights [columns / 32, width of its input, 32]");
    long columns = w.sizes[0] * WIDTH, rows = 1;
    for (size_t at = 0; at + 1 < x.rank; at++)
        rows *= x.sizes[at];
    if (bias.data && (bias.rank != 1 || bias.sizes[0] != columns))
        return api->CreateStatus(INVALID_ARGUMENT, "Linear takes a bias [columns]");
    if (residual.data && elements(&residual) != rows * columns)
        return api->CreateStatus(INVALID_ARGUMENT, "Linear takes a residual of the size of its output");
    Product job = {linear, x.data, w.data, bias.data, residual.data, NULL, rows, w.sizes[1], w.sizes[0], 0, 0};
    x.sizes[x.rank - 1] = columns;
    if ((status = make_output(api, context, x.sizes, x.rank, &job.y)) || !rows || !columns)
        return status;
    long most = CHUNK_BYTES / (long)sizeof(float) / (job.terms ? job.terms : 1);
    most = most > MOST_ROWS ? most / MOST_ROWS * MOST_ROWS : MOST_ROWS;
    job.chunks = (rows + most - 1) / most;
    job.shares = (MOST_SHARES + job.chunks - 1) / job.chunks;
    job.shares = job.panels < job.shares ? job.panels : job.shares;
    return api->ParallelFor(context, compute_share, (size_t)(job.chunks * job.shares), 0, &job);
}

static Status *create(const Operator *self, const Api *api, const Info *info, void **kernel) {
    (void)self;
    int64_t activation = 0;
    Status *status = api->KernelInfoGetAttribute_int64(info, "activation", &activation);
    if (status)
        return status;
    if (activation != NO_ACTIVATION && activation != GELU)
        return api->CreateStatus(INVALID_ARGUMENT, "Linear has activations 0 (none) and 1 (GELU)");
    Linear *linear = malloc(sizeof *linear);
    if (!linear)
        return api->CreateStatus(FAILED, "no memory");
    *linear = (Linear){api, find_kernels(), (int)activation};
    *kernel = linear;
    return NULL;
}

static const char *name(const Operator *self) { return (void)self, "Linear"; }
static size_t inputs(const Operator *self) { return (void)self, 4; }
static int type(const Operator *self, size_t at) { return (void)self, (void)at, FLOAT; }
static int characteristic(const Operator *self, size_t at) { return (void)self, at < 2 ? REQUIRED : OPTIONAL; }

Operator linear_operator(void) { return operator_of(name, type, inputs, characteristic, create, compute); }
