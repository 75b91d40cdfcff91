from libc.stdint cimport int64_t

from convserve.kernels.rows cimport Op, Patch, Ring, Run


cdef struct Indirection:
    # im2col without the matrix: pointers to the runs of memory behind each output pixel.
    int64_t segments        # runs of memory behind one pixel
    int64_t segment_length  # floats of each
    int64_t runs_w          # runs under one filter row
    int64_t group_channels  # input channels of one group

cdef Indirection indirection(const Op *op, const Ring *x) noexcept nogil
cdef void point(const Op *op, const Run *run, const Ring *x, const Indirection *form, const Patch *patch, int64_t pixel,
                int64_t count, int64_t group, const float **a) noexcept nogil
cdef void point_pixels(const Ring *y, const Patch *patch, int64_t pixel, int64_t count, float **c) noexcept nogil
