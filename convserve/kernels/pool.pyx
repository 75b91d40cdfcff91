"""Pooling of a band of rows: windows are clipped to the input, never padded."""

from libc.stdint cimport int64_t

from convserve.kernels.rows cimport Op, Patch, Place, Ring, Run, Share, patch_of, pixel_of, place_of, ring_row

cdef int64_t TAPS = 64


cdef inline int64_t first_tap(int64_t position, int64_t dilation) noexcept nogil:
    # the first i >= 0 with position + i*dilation >= 0
    return 0 if position >= 0 else (-position + dilation - 1) // dilation


cdef inline int64_t tap_limit(int64_t position, int64_t dilation, int64_t kernel, int64_t size) noexcept nogil:
    # one more than the last i < kernel with position + i*dilation < size
    return min(kernel, (size - position + dilation - 1) // dilation)


cdef inline void pool_taps(const Op *op, const Run *run, int64_t channels, int64_t count, const float **taps,
                           float *out, bint first, bint last, float divisor) noexcept nogil:
    if op.kind == MAX_POOL:
        run.kernels.max_pool(channels, count, taps, out, first)
    elif op.kind == AVERAGE_POOL:
        run.kernels.average_pool(channels, count, taps, out, first, divisor if last else 0.0)
    else:
        run.kernels.lp_pool(channels, count, taps, op.size, out, first, last)


cdef void pool_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end), by op.kind: the largest value of each window, a NaN before all; or the sum of each in row
    order, divided by the number of its taps; or the root of the sum of powers, whose exponent is op.size.
    """
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef Patch patch = patch_of(run, share, y)
    cdef int64_t pixel, top = 0, left, i, j, i0 = 0, i1 = 0, j0, j1, count, done
    cdef int64_t rows_padded = 0, columns_padded
    cdef int64_t step = op.stride_w * x.pixel_pitch
    cdef Place at
    cdef float divisor
    cdef bint whole = False, before   # whether all taps lie within the row; whether those of the pixel before did
    cdef const float *taps[64]
    cdef const float *start
    cdef float *out
    if patch.first == patch.last:
        return
    at = place_of(patch.first, &patch)
    at.column -= 1
    for pixel in range(patch.first, patch.last):
        at.column += 1
        before = whole
        if at.column == patch.left + patch.width or pixel == patch.first:
            at = place_of(pixel, &patch)
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
                        pool_taps(op, run, y.channels, count, taps, out, done == 0, False, divisor)
                        done += count
                        count = 0
                    taps[count] = start + j * op.dilation_w * x.pixel_pitch
                    count += 1
        pool_taps(op, run, y.channels, count, taps, out, done == 0, True, divisor)
