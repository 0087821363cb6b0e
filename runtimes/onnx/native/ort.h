/* What these operators use of ONNX Runtime's binary interface (onnxruntime_c_api.h).
 *
 * Functions are called by their place in its table (OrtApi), which never changes.
 */
#ifndef HEADRACE_ORT_H
#define HEADRACE_ORT_H

#include <stddef.h>
#include <stdint.h>

#define API_VERSION 17 /* the first that has ParallelFor */
#define MOST_RANK 8    /* dimensions of a tensor that operators take */

enum { FAILED = 1, INVALID_ARGUMENT = 2, FLOAT = 1, INT64 = 7, REQUIRED = 0, OPTIONAL = 1, DEFAULT_MEMORY = 0 };

typedef struct Status Status; /* NULL is success */
typedef struct Value Value;
typedef struct Shape Shape;
typedef struct Context Context;
typedef struct Info Info;
typedef struct Domain Domain;
typedef struct Options Options;
typedef void (*Task)(void *, size_t);

typedef struct {
    Status *(*CreateStatus)(int, const char *); /* 0 */
    void *f1[25];
    Status *(*CreateCustomOpDomain)(const char *, Domain **); /* 26 */
    Status *(*CustomOpDomain_Add)(Domain *, const void *);
    Status *(*AddCustomOpDomain)(Options *, Domain *);
    void *f29[22];
    Status *(*GetTensorMutableData)(const Value *, void **); /* 51 */
    void *f52[9];
    Status *(*GetDimensionsCount)(const Shape *, size_t *); /* 61 */
    Status *(*GetDimensions)(const Shape *, int64_t *, size_t);
    void *f63[2];
    Status *(*GetTensorTypeAndShape)(const Value *, Shape **); /* 65 */
    void *f66[19];
    Status *(*KernelInfoGetAttribute_float)(const Info *, const char *, float *); /* 85 */
    Status *(*KernelInfoGetAttribute_int64)(const Info *, const char *, int64_t *);
    void *f87[3];
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

#endif
