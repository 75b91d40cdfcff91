"""Locally-connected layers: a filter of its own at each position, so that the weights are read once an image."""

from libc.stdint cimport int64_t
from libc.string cimport memcpy

from convserve.kernels.dispatch cimport CS_RELU
from convserve.kernels.rows cimport Op, Patch, Place, Ring, Run, Share, patch_of, pixel_of, place_of


cdef void local_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end): op.weights is (rows, columns, group, kernel_h, kernel_w, C/group, M/group), op.bias (rows,
    columns, M). Each output value is one chain from the bias over the window's taps inside the image, row by row.
    """
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef Patch patch = patch_of(run, share, y)
    cdef int64_t depth = x.channels // op.group, filters = y.channels // op.group
    cdef int64_t taps = op.group * op.kernel_h * op.kernel_w * depth * filters
    cdef int64_t pixel, place, group, i, j, row, column
    cdef Place at
    cdef const float *weights
    cdef float *out
    for pixel in range(patch.first, patch.last):
        at = place_of(pixel, &patch)
        place = at.row * y.width + at.column
        weights = op.weights + place * taps
        out = pixel_of(y, at)
        memcpy(out, op.bias + place * y.channels, y.channels * sizeof(float))
        for group in range(op.group):
            for i in range(op.kernel_h):
                for j in range(op.kernel_w):
                    row = at.row * op.stride_h - op.pad_top + i * op.dilation_h
                    column = at.column * op.stride_w - op.pad_left + j * op.dilation_w
                    if 0 <= row < x.height and 0 <= column < x.width:
                        run.kernels.multiply_add(
                            filters, depth, pixel_of(x, Place(at.image, row, column)) + group * depth, weights,
                            out + group * filters)
                    weights += depth * filters
        if op.relu:
            run.kernels.activate(CS_RELU, y.channels, out, 0.0, 0.0, out)
