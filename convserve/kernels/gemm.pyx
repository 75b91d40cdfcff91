"""The macro-kernel: convolutions and fully-connected layers of a band of rows, as tiles of a GEMM.

m runs over images and output pixels, n over output channels, k over (filter row, filter column, channel).
Weights are panels of 16 channels, (group, panel, k, 16), of any stored type. Each output value is one chain over
k, whatever the tiles, threads or bands.
"""

from libc.stdint cimport int64_t

from convserve.kernels.dispatch cimport CS_ADD, CS_PANEL, cs_gemm_params
from convserve.kernels.im2col cimport Indirection, indirection, point, point_pixels
from convserve.kernels.rows cimport (Op, Patch, Place, Ring, Run, Share, all_pixels, part_of, patch_of,
                                     pixel_of, place_of, ring_row)

# Weight panels that are gone through for all tiles before the next ones: they stay in the second-level cache.
cdef int64_t PANEL_GROUP_BYTES = 640 * 1024
cdef int64_t OWN_CACHE_VALUES = 160 * 1024
cdef int64_t OUTNUMBER = 4
cdef int64_t TAPS = 64


cdef bint split_panels(const Run *run, const Share *share, int64_t panels, int64_t weights, int64_t activations,
                       int64_t *first, int64_t *last) noexcept nogil:
    """Whether a share is a part [first, last) of the weight panels, and not of the pixels.

    It is where the values of the weights far outnumber those read and written, and are more than a thread's own cache
    holds from band to band: splitting panels makes every thread read what all threads wrote.
    """
    cdef int64_t pairs = (panels + run.kernels.panels - 1) // run.kernels.panels
    first[0] = 0
    last[0] = panels
    if pairs < share.parts or weights <= OWN_CACHE_VALUES or weights <= OUTNUMBER * activations:
        return False
    part_of(pairs, share, first, last)
    first[0] *= run.kernels.panels
    last[0] = min(panels, last[0] * run.kernels.panels)
    return True


cdef void conv_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of a convolution, for all images; one part of the pixels or of the panels."""
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef Patch patch = all_pixels(run, share, y)
    cdef Indirection form = indirection(op, x)
    cdef int64_t k = form.segments * form.segment_length
    cdef int64_t group_n = y.channels // op.group
    cdef int64_t panels = (group_n + CS_PANEL - 1) // CS_PANEL
    cdef int64_t mr = run.kernels.mr, tile_panels = run.kernels.panels
    cdef int64_t first_panel, last_panel
    cdef int64_t at_once, group, tile, tiles, panel, stop, p, pixel, count, after
    cdef const float **a = <const float **> (run.scratch + share.thread * run.scratch_pitch)
    cdef float *c[16]
    cdef float *residual[16]
    cdef cs_gemm_params params

    if not split_panels(run, share, panels, op.group * panels * CS_PANEL * k,
                        patch.last * (op.stride_h * op.stride_w * x.channels + y.channels),
                        &first_panel, &last_panel):
        patch = patch_of(run, share, y)
    if patch.first == patch.last or first_panel == last_panel:
        return
    if patch.last - patch.first == 1:
        tile_panels = run.kernels.row_panels

    params.segments = form.segments
    params.segment_length = form.segment_length
    params.a = a
    params.b_type = op.panel_type
    params.panel_pitch = k * CS_PANEL
    params.relu = op.relu
    params.c = c
    params.residual = <const float **> residual if op.input_count > 1 else NULL
    at_once = PANEL_GROUP_BYTES // (k * CS_PANEL * op.panel_value_bytes)
    at_once = max(tile_panels, at_once // tile_panels * tile_panels)
    tiles = (patch.last - patch.first + mr - 1) // mr

    for group in range(op.group):
        panel = first_panel
        while panel < last_panel:
            stop = min(last_panel, panel + at_once)
            pixel = patch.first
            for tile in range(tiles):
                after = patch.first + (patch.last - patch.first) * (tile + 1) // tiles
                count = after - pixel
                point(op, run, x, &form, &patch, pixel, count, group, a)
                point_pixels(y, &patch, pixel, count, c)
                if params.residual != NULL:
                    point_pixels(run.rings + op.inputs[1], &patch, pixel, count, residual)
                p = panel
                while p < stop:
                    params.channel = group * group_n + p * CS_PANEL
                    params.n = min(min(tile_panels, stop - p) * CS_PANEL, group_n - p * CS_PANEL)
                    params.b = op.panels + (group * panels + p) * params.panel_pitch * op.panel_value_bytes
                    params.bias = op.bias + (group * panels + p) * CS_PANEL
                    run.kernels.gemm(&params, <int> count)
                    p += tile_panels
                pixel = after
            panel = stop


cdef void depthwise_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of a convolution with one filter a channel; weights are (kernel_h * kernel_w, channels)."""
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef Patch patch = patch_of(run, share, y)
    cdef int64_t total = op.kernel_h * op.kernel_w
    cdef int64_t pixel, i, j, row, done, count
    cdef int64_t step = op.stride_w * x.pixel_pitch, across = op.dilation_w * x.pixel_pitch
    cdef bint same_row
    cdef Place at
    cdef const float *taps[64]
    cdef const float *start
    cdef float *out
    if patch.first == patch.last:
        return
    at = place_of(patch.first, &patch)
    at.column -= 1
    for pixel in range(patch.first, patch.last):
        at.column += 1
        same_row = pixel > patch.first and at.column < patch.left + patch.width
        if not same_row:
            at = place_of(pixel, &patch)
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
            run.kernels.combine(CS_ADD, y.channels, out, pixel_of(run.rings + op.inputs[1], at), out, op.relu)
