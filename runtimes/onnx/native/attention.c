/* headrace.Attention: each token of a text attends to all tokens of that text.
 *
 * QKV [tokens, 3, heads, size] has the queries, keys and values of texts that lie one after the other. MASK [texts, width]
 * (int64) has as many values other than 0 for each text as it has tokens. Y is [tokens, heads * size]. Attributes:
 * `heads`, and `scale` of the scores. `size` is a multiple of 32. What a text gets does not depend on the others, nor on
 * threads.
 */
#include "kernels.h"
#include "operators.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const Api *api;
    const Kernels *kernels;
    long heads;
    float scale;
} Attention;

typedef struct {
    const Attention *attention;
    const float *qkv;
    float *y;
    const long *starts; /* of each text, in tokens, and the end of the last */
    long size, width;   /* of a head; of all of them */
    _Atomic int failed; /* set when there was no memory */
} Job;

/* Lay out keys as panels of 32 tokens, [panels, size, 32], with zeros behind the last, */
static void lay_out_keys(const float *keys, long step, long tokens, long size, float *panels) {
    for (long first = 0; first < tokens; first += WIDTH, panels += size * WIDTH) {
        long count = tokens - first < WIDTH ? tokens - first : WIDTH;
        if (count < WIDTH)
            memset(panels, 0, sizeof(float) * (size_t)(size * WIDTH));
        for (long token = 0; token < count; token++)
            for (long at = 0; at < size; at++)
                panels[at * WIDTH + token] = keys[(first + token) * step + at];
    }
}

/* and values as panels of 32 columns, [size / 32, tokens, 32]. */
static void lay_out_values(const float *values, long step, long tokens, long size, float *panels) {
    for (long column = 0; column < size; column += WIDTH)
        for (long token = 0; token < tokens; token++, panels += WIDTH)
            for (long at = 0; at < WIDTH; at++)
                panels[at] = values[token * step + column + at];
}

/* Compute one head of one text. */
static void compute_head(void *data, size_t at) {
    Job *job = data;
    const Kernels *kernels = job->attention->kernels;
    long text = (long)at / job->attention->heads, head = (long)at % job->attention->heads;
    long first = job->starts[text], tokens = job->starts[text + 1] - first, step = 3 * job->width, size = job->size;
    if (!tokens)
        return;
    long padded = (tokens + WIDTH - 1) / WIDTH * WIDTH, tiles = (tokens + kernels->rows - 1) / kernels->rows;
    float *keys = malloc(sizeof(float) * (size_t)(padded * size + tokens * size + padded * MOST_ROWS));
    if (!keys) {
        job->failed = 1;
        return;
    }
    float *values = keys + padded * size, *scores = values + tokens * size, inverse[MOST_ROWS];
    const float *queries = job->qkv + first * step + head * size;
    float *target = job->y + first * job->width + head * size;
    lay_out_keys(queries + job->width, step, tokens, size, keys);
    lay_out_values(queries + 2 * job->width, step, tokens, size, values);
    for (long tile = 0; tile < tiles; tile++) {
        long row = tokens * tile / tiles, count = tokens * (tile + 1) / tiles - row;
        for (long key = 0; key < padded; key += WIDTH)
            kernels->multiply(queries + row * step, step, keys + key * size, scores + key, padded, size, count);
        kernels->exponentials(scores, padded, count, tokens, job->attention->scale, inverse);
        for (long column = 0; column < size; column += WIDTH) {
            float *y = target + row * job->width + column;
            kernels->multiply(scores, padded, values + column * tokens, y, job->width, tokens, count);
            kernels->multiply_by(y, job->width, count, inverse);
        }
    }
    free(keys);
}

/* Return where texts start, in tokens, and the end of the last: allocated; NULL where there is no memory. */
static long *find_starts(const int64_t *mask, long texts, long width) {
    long *starts = malloc(sizeof(long) * (size_t)(texts + 1)), total = 0;
    for (long text = 0; starts && text < texts; text++) {
        starts[text] = total;
        for (long at = 0; at < width; at++)
            total += mask[text * width + at] != 0;
    }
    if (starts)
        starts[texts] = total;
    return starts;
}

static Status *compute(void *kernel, Context *context) {
    const Attention *attention = kernel;
    const Api *api = attention->api;
    Tensor qkv, mask;
    Status *status;
    if ((status = read_input(api, context, 0, &qkv)) || (status = read_input(api, context, 1, &mask)))
        return status;
    if (qkv.rank != 2 || qkv.sizes[1] % (3 * attention->heads * WIDTH))
        return api->CreateStatus(INVALID_ARGUMENT, "Attention takes [tokens, 3 * heads * size], size a multiple of 32");
    if (mask.rank != 2)
        return api->CreateStatus(INVALID_ARGUMENT, "Attention takes a mask [texts, width]");
    long texts = mask.sizes[0], width = qkv.sizes[1] / 3, *starts = find_starts(mask.data, texts, mask.sizes[1]);
    if (!starts)
        return api->CreateStatus(FAILED, "no memory");
    Job job = {attention, qkv.data, NULL, starts, width / attention->heads, width, 0};
    if (starts[texts] != qkv.sizes[0])
        status = api->CreateStatus(INVALID_ARGUMENT, "Attention takes a mask with as many tokens as it is given");
    else
        status = make_output(api, context, (int64_t[]){qkv.sizes[0], width}, 2, &job.y);
    if (!status && starts[texts])
        status = api->ParallelFor(context, compute_head, (size_t)(texts * attention->heads), 0, &job);
    free(starts);
    return status || !job.failed ? status : api->CreateStatus(FAILED, "no memory");
}

static Status *create(const Operator *self, const Api *api, const Info *info, void **kernel) {
    (void)self;
    int64_t heads = 0;
    float scale = 0.0f;
    Status *status;
    if ((status = api->KernelInfoGetAttribute_int64(info, "heads", &heads)) ||
        (status = api->KernelInfoGetAttribute_float(info, "scale", &scale)))
        return status;
    if (heads < 1 || heads > INT32_MAX)
        return api->CreateStatus(INVALID_ARGUMENT, "Attention takes at least one head");
    Attention *attention = malloc(sizeof *attention);
    if (!attention)
        return api->CreateStatus(FAILED, "no memory");
    *attention = (Attention){api, find_kernels(), heads, scale};
    *kernel = attention;
    return NULL;
}

static const char *name(const Operator *self) { return (void)self, "Attention"; }
static size_t inputs(const Operator *self) { return (void)self, 2; }
static int type(const Operator *self, size_t at) { return (void)self, at == 1 ? INT64 : FLOAT; }
static int characteristic(const Operator *self, size_t at) { return (void)self, (void)at, REQUIRED; }

Operator attention_operator(void) { return operator_of(name, type, inputs, characteristic, create, compute); }
