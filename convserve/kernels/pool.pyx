"""Pooling of a band of rows: windows are clipped to the input, never padded."""

from libc.stdint cimport int64_t

from convserve.kernels.rows cimport Op, Place, Ring, Run, Share, part_of, pixel_of, place_of, ring_row

cdef int64_t TAPS = 64


cdef inline int64_t first_tap(int64_t position, int64_t dilation) noexcept nogil:
    # the first i >= 0 with position + i*dilation >= 0
    return 0 if position >= 0 else (-position + dilation - 1) // dilation


cdef inline int64_t tap_limit(int64_t position, int64_t dilation, int64_t kernel, int64_t size) noexcept nogil:
    # one more than the last i < kernel with position + i*dilation < size
    return min(kernel, (size - position + dilation - 1) // dilation)


cdef void pool_rows(const Op *op, const Run *run, const Share *share, bint average) noexcept nogil:
    cdef int64_t begin = share.begin, end = share.end
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef int64_t first, last, pixel, top = 0, left, i, j, i0 = 0, i1 = 0, j0, j1, count, done
    cdef int64_t rows_padded = 0, columns_padded
    cdef int64_t step = op.stride_w * x.pixel_pitch
    cdef Place at
    cdef float divisor
    cdef bint whole = False, before   # whether all taps lie within the row; whether those of the pixel before did
    cdef const float *taps[64]
    cdef const float *start
    cdef float *out
    part_of(run.images * (end - begin) * y.width, share, &first, &last)
    if first == last:
        return
    at = place_of(first, begin, end - begin, y.width)
    at.column -= 1
    for pixel in range(first, last):
        at.column += 1
        before = whole
        if at.column == y.width or pixel == first:
            at = place_of(pixel, begin, end - begin, y.width)
            before = False
            top = at.row * op.stride_h - op.pad_top
            i0 = first_tap(top, op.dilation_h)
            i1 = tap_limit(top, op.dilation_h, op.kernel_h, x.height)
            # taps in the padding count, taps that only ceil_mode added do not
            rows_padded = tap_limit(top, op.dilation_h, op.kernel_h, x.height + op.pad_bottom)
        out = pixel_of(y, at)
        left = at.column * op.stride_w - op.pad_left
        whole = left >= 0 and left + (op.kernel_w - 1) * op.dilation_w < x.width
        j0 = 0 if whole else first_tap(left, op.dilation_w)
        j1 = op.kernel_w if whole else tap_limit(left, op.dilation_w, op.kernel_w, x.width)
        divisor = <float> ((i1 - i0) * (j1 - j0))
        if op.count_include_pad:
            columns_padded = op.kernel_w
            if not whole:
                columns_padded = tap_limit(left, op.dilation_w, op.kernel_w, x.width + op.pad_right)
            divisor = <float> (rows_padded * columns_padded)
        count = (i1 - i0) * (j1 - j0)
        done = 0
        if whole and before and count <= TAPS:
            for i in range(count):
                taps[i] += step
        else:
            count = 0
            for i in range(i0, i1):
                start = ring_row(x, at.image, top + i * op.dilation_h) + left * x.pixel_pitch
                for j in range(j0, j1):
                    if count == TAPS:
                        if average:
                            run.kernels.average_pool(y.channels, count, taps, out, done == 0, 0.0)
                        else:
                            run.kernels.max_pool(y.channels, count, taps, out, done == 0)
                        done += count
                        count = 0
                    taps[count] = start + j * op.dilation_w * x.pixel_pitch
                    count += 1
        if average:
            run.kernels.average_pool(y.channels, count, taps, out, done == 0, divisor)
        else:
            run.kernels.max_pool(y.channels, count, taps, out, done == 0)


cdef void max_pool_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end): the largest value of each window; a NaN in a window comes out."""
    pool_rows(op, run, share, False)


cdef void average_pool_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end): the sum of each window in row order, divided by the number of its taps."""
    pool_rows(op, run, share, True)
