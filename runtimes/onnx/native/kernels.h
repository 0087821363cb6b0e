/* Arithmetic on rows of float32, in a form for each instruction set. */
#ifndef HEADRACE_KERNELS_H
#define HEADRACE_KERNELS_H

#define WIDTH 32      /* columns of a panel of weights: [terms][32] */
#define MOST_ROWS 12  /* of a tile, in any form */

enum { NO_ACTIVATION = 0, GELU = 1 };

typedef struct {
    int rows; /* most that `multiply` takes at a time */

    /* Y[rows, 32] = X[rows, terms] times a panel; rows of X are x_step apart, those of Y y_step. */
    void (*multiply)(const float *x, long x_step, const float *panel, float *y, long y_step, long terms, long rows);

    /* Add bias [32] and residual (as Y), each unless NULL, to the tile Y, and apply the activation. */
    void (*finish)(float *y, long y_step, long rows, const float *bias, const float *residual, int activation);

    /* Y[rows, 0..count) = e^(scale (Y - the row's largest)); the reciprocals of the rows' sums go to `inverse`. */
    void (*exponentials)(float *y, long y_step, long rows, long count, float scale, float *inverse);

    /* Y[rows, 32] times each row's factor. */
    void (*multiply_by)(float *y, long y_step, long rows, const float *factors);

    /* Y = (X - mean) / sqrt(variance + epsilon) * scale + bias, of one row of `columns`, a multiple of 32. */
    void (*normalise)(const float *x, float *y, long columns, const float *scale, const float *bias, float epsilon);
} Kernels;

/* Return the best form that this processor has, NULL if none. */
const Kernels *find_kernels(void);

#endif
