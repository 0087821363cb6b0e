/* headrace.LayerNorm: each row of X […, columns] less its mean, by its standard deviation, times scale, plus bias
 * [columns]. The attribute `epsilon` is added to the variance; `columns` is a multiple of 32.
 */
#include "kernels.h"
#include "operators.h"

#include <stdlib.h>

#define ROWS_OF_SHARE 32

typedef struct {
    const Api *api;
    const Kernels *kernels;
    float epsilon;
} Norm;

typedef struct {
    const Norm *norm;
    const float *x, *scale, *bias;
    float *y;
    long rows, columns;
} Job;

static void compute_share(void *data, size_t at) {
    const Job *job = data;
    long first = (long)at * ROWS_OF_SHARE, end = first + ROWS_OF_SHARE < job->rows ? first + ROWS_OF_SHARE : job->rows;
    for (long row = first * job->columns; row < end * job->columns; row += job->columns)
        job->norm->kernels->normalise(job->x + row, job->y + row, job->columns, job->scale, job->bias,
                                      job->norm->epsilon);
}

static Status *compute(void *kernel, Context *context) {
    const Norm *norm = kernel;
    const Api *api = norm->api;
    Tensor x, scale, bias;
    Status *status;
    if ((status = read_input(api, context, 0, &x)) || (status = read_input(api, context, 1, &scale)) ||
        (status = read_input(api, context, 2, &bias)))
        return status;
    long columns = x.rank ? x.sizes[x.rank - 1] : 0;
    if (columns < 1 || columns % WIDTH)
        return api->CreateStatus(INVALID_ARGUMENT, "LayerNorm takes columns in a multiple of 32");
    if (elements(&scale) != columns || elements(&bias) != columns)
        return api->CreateStatus(INVALID_ARGUMENT, "LayerNorm takes scale and bias [columns]");
    Job job = {norm, x.data, scale.data, bias.data, NULL, elements(&x) / columns, columns};
    if ((status = make_output(api, context, x.sizes, x.rank, &job.y)) || !job.rows)
        return status;
    long shares = (job.rows + ROWS_OF_SHARE - 1) / ROWS_OF_SHARE;
    return api->ParallelFor(context, compute_share, (size_t)shares, 0, &job);
}

static Status *create(const Operator *self, const Api *api, const Info *info, void **kernel) {
    (void)self;
    float epsilon = 0.0f;
    Status *status = api->KernelInfoGetAttribute_float(info, "epsilon", &epsilon);
    if (status)
        return status;
    Norm *norm = malloc(sizeof *norm);
    if (!norm)
        return api->CreateStatus(FAILED, "no memory");
    *norm = (Norm){api, find_kernels(), epsilon};
    *kernel = norm;
    return NULL;
}

static const char *name(const Operator *self) { return (void)self, "LayerNorm"; }
static size_t inputs(const Operator *self) { return (void)self, 3; }
static int type(const Operator *self, size_t at) { return (void)self, (void)at, FLOAT; }
static int characteristic(const Operator *self, size_t at) { return (void)self, (void)at, REQUIRED; }

Operator norm_operator(void) { return operator_of(name, type, inputs, characteristic, create, compute); }
