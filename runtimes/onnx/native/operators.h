/* What the operators have in common. */
#ifndef HEADRACE_OPERATORS_H
#define HEADRACE_OPERATORS_H

#include "ort.h"

typedef struct {
    void *data; /* NULL where an optional input was left out */
    int64_t sizes[MOST_RANK];
    size_t rank;
} Tensor;

/* Read input `at`. */
Status *read_input(const Api *api, const Context *context, size_t at, Tensor *found);

/* Return the product of a tensor's sizes. */
long elements(const Tensor *tensor);

/* Make output 0, of float32, and return its memory in `data`. */
Status *make_output(const Api *api, Context *context, const int64_t *sizes, size_t rank, float **data);

/* Fill in what all operators have alike; a kernel is freed with free(). */
Operator operator_of(const char *(*name)(const Operator *), int (*type)(const Operator *, size_t),
                     size_t (*inputs)(const Operator *), int (*characteristic)(const Operator *, size_t),
                     Status *(*create)(const Operator *, const Api *, const Info *, void **),
                     Status *(*compute)(void *, Context *));

Operator linear_operator(void);
Operator attention_operator(void);
Operator norm_operator(void);

#endif
