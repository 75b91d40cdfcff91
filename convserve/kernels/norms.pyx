"""Normalisation by statistics of groups of channels over a whole image: one step finds them, another applies them."""

from libc.math cimport sqrt
from libc.stdint cimport int64_t

from convserve.kernels.rows cimport Op, Patch, Place, Ring, Run, Share, part_of, patch_of, pixel_of, place_of


cdef void spread_sums(double *sums, int64_t groups, int64_t depth, double count) noexcept nogil:
    """Replace the sums of each group's channels by the sum of these over count, in the order of the channels."""
    cdef int64_t group, c
    cdef double total
    for group in range(groups):
        total = 0.0
        for c in range(depth):
            total += sums[group * depth + c]
        for c in range(depth):
            sums[group * depth + c] = total / count


cdef void group_statistics_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """The only pixel of the statistics of op.group groups: of each channel its factor, then of each its shift.

    factor = scale / sqrt(variance + epsilon), shift = bias - mean * factor; op.weights and op.bias are scale and bias,
    op.offset is epsilon. Sums run over a channel's pixels, row by row, then over the channels of its group.
    """
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef int64_t channels = x.channels, depth = x.channels // op.group
    cdef double count = <double> (x.height * x.width * depth)
    cdef double *mean = <double *> (run.scratch + share.thread * run.scratch_pitch)
    cdef double *variance = mean + channels
    cdef double factor
    cdef int64_t first, last, image, begin, end, row, column, c
    cdef float *out
    part_of(run.images * op.group, share, &first, &last)
    while first < last:
        image = first // op.group
        begin = first % op.group * depth
        end = min((last - image * op.group) * depth, channels)
        for c in range(end - begin):
            mean[c] = variance[c] = 0.0
        for row in range(x.height):
            for column in range(x.width):
                run.kernels.add_moments(end - begin, pixel_of(x, Place(image, row, column)) + begin, NULL, mean)
        spread_sums(mean, (end - begin) // depth, depth, count)
        for row in range(x.height):
            for column in range(x.width):
                run.kernels.add_moments(end - begin, pixel_of(x, Place(image, row, column)) + begin, mean, variance)
        spread_sums(variance, (end - begin) // depth, depth, count)
        out = pixel_of(y, Place(image, 0, 0))
        for c in range(begin, end):
            factor = op.weights[c] / sqrt(variance[c - begin] + op.offset)
            out[c] = <float> factor
            out[channels + c] = <float> (op.bias[c] - mean[c - begin] * factor)
        first = (image + 1) * op.group


cdef void group_normalize_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of the first input, scaled and shifted by the statistics of the second."""
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef Patch patch = patch_of(run, share, y)
    cdef int64_t pixel
    cdef Place at
    cdef const float *factors
    for pixel in range(patch.first, patch.last):
        at = place_of(pixel, &patch)
        factors = pixel_of(run.rings + op.inputs[1], Place(at.image, 0, 0))
        run.kernels.affine(y.channels, pixel_of(x, at), factors, factors + y.channels, pixel_of(y, at), 0)
