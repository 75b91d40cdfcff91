"""The macro-kernel: convolutions and fully-connected layers of a band of rows, as tiles of a GEMM.

m runs over images and output pixels, n over output channels, k over (filter row, filter column, channel).
Weights are panels of 16 channels, (group, panel, k, 16). Each output value is one chain over k,
whatever the tiles, threads or bands.
"""

from libc.stdint cimport int64_t

from convserve.kernels.dispatch cimport CS_MR_MAX, CS_PANEL, cs_gemm_params
from convserve.kernels.im2col cimport Indirection, indirection, pack, point, point_pixels
from convserve.kernels.rows cimport Op, Place, Ring, Run, Share, part_of, pixel_of, place_of, ring_row

# Weight panels that are gone through for all tiles before the next ones: they stay in the second-level cache.
cdef int64_t PANEL_GROUP_BYTES = 640 * 1024
cdef int64_t TAPS = 64


cdef void conv_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of a convolution, for all images; one part of the pixels or of the panels."""
    cdef int64_t begin = share.begin, end = share.end
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef Indirection form = indirection(op, x)
    cdef int64_t k = form.segments * form.segment_length
    cdef int64_t group_n = y.channels // op.group
    cdef int64_t panels = (group_n + CS_PANEL - 1) // CS_PANEL
    cdef int64_t pixels_per_image = (end - begin) * y.width
    cdef int64_t pixels = run.images * pixels_per_image
    cdef int64_t mr = run.kernels.mr, tile_panels = run.kernels.panels
    cdef int64_t first_pixel = 0, last_pixel = pixels, first_panel = 0, last_panel = panels
    cdef int64_t pairs, input_pixels, at_once, group, tile, tiles, panel, stop, p, pixel, count, after
    cdef const float **a = <const float **> (run.scratch + share.thread * run.scratch_pitch)
    cdef float *rows = <float *> (a + form.segments * CS_MR_MAX)
    cdef float *c[16]
    cdef float *residual[16]
    cdef cs_gemm_params params

    # Reading all weights in every thread costs more than reading all activations there: split the channels.
    if share.parts > 1:
        pairs = (panels + tile_panels - 1) // tile_panels
        input_pixels = pixels * op.stride_h * op.stride_w // (op.kernel_h * op.kernel_w)
        if pairs >= share.parts and panels * CS_PANEL > input_pixels:
            part_of(pairs, share, &first_panel, &last_panel)
            first_panel *= tile_panels
            last_panel = min(panels, last_panel * tile_panels)
        else:
            part_of(pixels, share, &first_pixel, &last_pixel)
    if first_pixel == last_pixel or first_panel == last_panel:
        return

    params.segments = 1 if op.packed else form.segments
    params.segment_length = k if op.packed else form.segment_length
    params.a = a
    params.panel_pitch = k * CS_PANEL
    params.relu = op.relu
    params.c = c
    params.residual = <const float **> residual if op.input_count > 1 else NULL
    at_once = PANEL_GROUP_BYTES // (k * CS_PANEL * <int64_t> sizeof(float))
    at_once = max(tile_panels, at_once // tile_panels * tile_panels)
    tiles = (last_pixel - first_pixel + mr - 1) // mr

    for group in range(op.group):
        panel = first_panel
        while panel < last_panel:
            stop = min(last_panel, panel + at_once)
            pixel = first_pixel
            for tile in range(tiles):
                after = first_pixel + (last_pixel - first_pixel) * (tile + 1) // tiles
                count = after - pixel
                point(op, run, x, &form, begin, pixel, pixels_per_image, count, group, a)
                if op.packed:
                    pack(&form, count, a, rows)
                point_pixels(y, begin, pixel, pixels_per_image, count, c)
                if params.residual != NULL:
                    point_pixels(run.rings + op.inputs[1], begin, pixel, pixels_per_image, count, residual)
                p = panel
                while p < stop:
                    params.channel = group * group_n + p * CS_PANEL
                    params.n = min(min(tile_panels, stop - p) * CS_PANEL, group_n - p * CS_PANEL)
                    params.b = op.weights + (group * panels + p) * params.panel_pitch
                    params.bias = op.bias + (group * panels + p) * CS_PANEL
                    run.kernels.gemm(&params, <int> count)
                    p += tile_panels
                pixel = after
            panel = stop


cdef void depthwise_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of a convolution with one filter a channel; weights are (kernel_h * kernel_w, channels)."""
    cdef int64_t begin = share.begin, end = share.end
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef int64_t total = op.kernel_h * op.kernel_w
    cdef int64_t first, last, pixel, i, j, row, done, count
    cdef int64_t step = op.stride_w * x.pixel_pitch, across = op.dilation_w * x.pixel_pitch
    cdef bint same_row
    cdef Place at
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
        same_row = pixel > first and at.column < y.width
        if not same_row:
            at = place_of(pixel, begin, end - begin, y.width)
        out = pixel_of(y, at)
        done = 0
        count = 0
        if same_row and total <= TAPS:
            count = total
            for i in range(count):
                taps[i] += step
        else:
            for i in range(op.kernel_h):
                row = at.row * op.stride_h - op.pad_top + i * op.dilation_h
                if 0 <= row < x.height:
                    start = ring_row(x, at.image, row)
                else:
                    start = run.zeros + x.pad_left * x.pixel_pitch
                start += at.column * step - op.pad_left * x.pixel_pitch
                for j in range(op.kernel_w):
                    if count == TAPS:
                        run.kernels.depthwise(y.channels, count, taps, op.weights + done * y.channels, op.bias, out,
                                              done == 0, False)
                        done += count
                        count = 0
                    taps[count] = start + j * across
                    count += 1
        run.kernels.depthwise(y.channels, count, taps, op.weights + done * y.channels, op.bias, out, done == 0,
                              op.relu and op.input_count == 1)
        if op.input_count > 1:
            run.kernels.add(y.channels, out, pixel_of(run.rings + op.inputs[1], at), out, op.relu)
