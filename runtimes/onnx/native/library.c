/* The library of operators of the domain `headrace` for ONNX Runtime. */
#include "kernels.h"
#include "operators.h"

#include <stdlib.h>

#define EXPORTED __attribute__((visibility("default")))

extern const Kernels AVX512, AVX2;

const Kernels *find_kernels(void) {
#if defined(__x86_64__) && defined(__GNUC__)
#ifndef WITHOUT_AVX512 /* so that the other form can be tried where there is AVX-512 */
    if (__builtin_cpu_supports("avx512f"))
        return &AVX512;
#endif
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &AVX2;
#endif
    return NULL;
}

Status *read_input(const Api *api, const Context *context, size_t at, Tensor *found) {
    const Value *value = NULL;
    Shape *shape = NULL;
    Status *status;
    found->data = NULL;
    if ((status = api->GetInput(context, at, &value)) || !value)
        return status;
    if ((status = api->GetTensorTypeAndShape(value, &shape)))
        return status;
    status = api->GetDimensionsCount(shape, &found->rank);
    if (!status && found->rank > MOST_RANK)
        status = api->CreateStatus(INVALID_ARGUMENT, "a tensor has more than 8 dimensions");
    if (!status)
        status = api->GetDimensions(shape, found->sizes, found->rank);
    api->ReleaseShape(shape);
    return status ? status : api->GetTensorMutableData(value, &found->data);
}

long elements(const Tensor *tensor) {
    long count = 1;
    for (size_t at = 0; at < tensor->rank; at++)
        count *= tensor->sizes[at];
    return count;
}

Status *make_output(const Api *api, Context *context, const int64_t *sizes, size_t rank, float **data) {
    Value *value = NULL;
    Status *status = api->GetOutput(context, 0, sizes, rank, &value);
    return status ? status : api->GetTensorMutableData(value, (void **)data);
}

static const char *provider(const Operator *self) { return (void)self, NULL; }
static int floats(const Operator *self, size_t at) { return (void)self, (void)at, FLOAT; }
static size_t one(const Operator *self) { return (void)self, 1; }
static int required(const Operator *self, size_t at) { return (void)self, (void)at, REQUIRED; }
static int memory(const Operator *self, size_t at) { return (void)self, (void)at, DEFAULT_MEMORY; }
static int first(const Operator *self) { return (void)self, 1; }
static int last(const Operator *self) { return (void)self, INT32_MAX; }

Operator operator_of(const char *(*name)(const Operator *), int (*type)(const Operator *, size_t),
                     size_t (*inputs)(const Operator *), int (*characteristic)(const Operator *, size_t),
                     Status *(*create)(const Operator *, const Api *, const Info *, void **),
                     Status *(*compute)(void *, Context *)) {
    return (Operator){
        .version = API_VERSION,
        .GetName = name,
        .GetExecutionProviderType = provider,
        .GetInputType = type,
        .GetInputTypeCount = inputs,
        .GetOutputType = floats,
        .GetOutputTypeCount = one,
        .KernelDestroy = free,
        .GetInputCharacteristic = characteristic,
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
}

/* What ONNX Runtime looks for in a library of operators. */
EXPORTED Status *RegisterCustomOps(Options *options, const ApiBase *base) {
    static Domain *domain; /* of the process: sessions that use it are never all gone before it ends */
    static Operator operators[3];
    const Api *api = base->GetApi(API_VERSION);
    Status *status;
    if (!find_kernels())
        return api->CreateStatus(FAILED, "the operators need a processor with AVX2 or AVX-512");
    if (!domain) {
        Domain *made = NULL;
        operators[0] = linear_operator();
        operators[1] = attention_operator();
        operators[2] = norm_operator();
        if ((status = api->CreateCustomOpDomain("headrace", &made)))
            return status;
        for (int at = 0; at < 3; at++)
            if ((status = api->CustomOpDomain_Add(made, &operators[at])))
                return status;
        domain = made;
    }
    return api->AddCustomOpDomain(options, domain);
}
