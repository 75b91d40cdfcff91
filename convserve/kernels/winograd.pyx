"""Winograd convolutions of a band of rows: tiles transformed into one tensor, and multiplied out of it.

A row of the transformed tensor V is a row of output tiles, 4x4 or 2x2 large; each of its pixels holds 36 runs of
channels, 16 floats further apart than they are long, so that tiles do not lie a multiple of 4096 bytes apart.
"""

from libc.stdint cimport int64_t

from convserve.kernels.dispatch cimport CS_F32, CS_PANEL, cs_gemm_params
from convserve.kernels.gemm cimport split_panels
from convserve.kernels.rows cimport (Op, Patch, Place, Ring, Run, Share, all_pixels, patch_of, pixel_of,
                                     place_of, ring_row)

cdef enum:
    REACH = 6
    POINTS = 36
    GAP = 16

cdef float no_bias[32]


cdef void winograd_input_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of V from the convolution's input."""
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *v = run.rings + op.output
    cdef Patch patch = patch_of(run, share, v)
    cdef int64_t pitch = v.channels // POINTS
    cdef int64_t tile, i, j, y
    cdef Place at
    cdef const float *start
    cdef const float *pixels[36]
    for tile in range(patch.first, patch.last):
        at = place_of(tile, &patch)
        for i in range(REACH):
            y = at.row * op.size - op.pad_top + i
            if 0 <= y < x.height:
                start = ring_row(x, at.image, y)
            else:
                start = run.zeros + x.pad_left * x.pixel_pitch
            start += (at.column * op.size - op.pad_left) * x.pixel_pitch
            for j in range(REACH):
                pixels[i * REACH + j] = start + j * x.pixel_pitch
        run.kernels.winograd_input(x.channels, pixels, pixel_of(v, at), pitch)


cdef void winograd_output_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of the convolution's output from V; one part of the tiles or of the weight panels."""
    cdef const Ring *v = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef Share tiles = Share(share.begin // op.size, (share.end + op.size - 1) // op.size, share.part, share.parts,
                             share.thread)
    cdef Patch patch = all_pixels(run, &tiles, v)
    cdef int64_t panels = (y.channels // op.group + CS_PANEL - 1) // CS_PANEL
    cdef int64_t first_panel, last_panel, from_tile, count, panel, group
    if not split_panels(run, share, panels, panels * CS_PANEL * v.channels,
                        patch.last * (v.channels + op.size * op.size * y.channels), &first_panel, &last_panel):
        patch = patch_of(run, &tiles, v)
    from_tile = patch.first
    while from_tile < patch.last:
        count = min(op.at_once, patch.last - from_tile)
        for group in range(op.group):
            panel = first_panel
            while panel < last_panel:
                multiply(op, run, share, &patch, from_tile, count, group, panel)
                finish(op, run, share, &patch, from_tile, count, group, panel)
                panel += run.kernels.panels
        from_tile += count


cdef void multiply(const Op *op, const Run *run, const Share *share, const Patch *patch, int64_t from_tile,
                   int64_t count, int64_t group, int64_t panel) noexcept nogil:
    # products[point][tile][channel of the pair] = V * U, 36 small GEMMs
    cdef const Ring *v = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef int64_t mr = run.kernels.mr, width = run.kernels.panels * CS_PANEL
    cdef int64_t pitch = v.channels // POINTS, channels = (pitch - GAP) // op.group
    cdef int64_t panels = (y.channels // op.group + CS_PANEL - 1) // CS_PANEL
    cdef int64_t blocks = (count + mr - 1) // mr
    cdef int64_t point, block, tile, after, number
    cdef const float **starts = <const float **> (run.scratch + share.thread * run.scratch_pitch)
    cdef float *products = <float *> (starts + op.at_once)
    cdef const float *a[16]
    cdef float *c[16]
    cdef cs_gemm_params params
    for tile in range(count):
        starts[tile] = pixel_of(v, place_of(from_tile + tile, patch))
    params.segments = 1
    params.segment_length = channels
    params.a = a
    params.b_type = CS_F32
    params.panel_pitch = channels * CS_PANEL
    params.bias = no_bias
    params.c = c
    params.residual = NULL
    params.channel = 0
    params.n = min(width, (panels - panel) * CS_PANEL)
    params.relu = 0
    for point in range(POINTS):
        params.b = op.weights + ((point * op.group + group) * panels + panel) * params.panel_pitch
        tile = 0
        for block in range(blocks):
            after = count * (block + 1) // blocks
            for number in range(after - tile):
                a[number] = starts[tile + number] + point * pitch + group * channels
                c[number] = products + (point * op.at_once + tile + number) * width
            run.kernels.gemm(&params, <int> (after - tile))
            tile = after


cdef void finish(const Op *op, const Run *run, const Share *share, const Patch *patch, int64_t from_tile,
                 int64_t count, int64_t group, int64_t panel) noexcept nogil:
    # products to outputs: rows of other steps and columns behind the image are left away
    cdef const Ring *y = run.rings + op.output
    cdef const Ring *other = run.rings + op.inputs[1] if op.input_count > 1 else NULL
    cdef int64_t width = run.kernels.panels * CS_PANEL
    cdef int64_t filters = y.channels // op.group, panels = (filters + CS_PANEL - 1) // CS_PANEL
    cdef int64_t channel = group * filters + panel * CS_PANEL, n = min(width, filters - panel * CS_PANEL)
    cdef const float **starts = <const float **> (run.scratch + share.thread * run.scratch_pitch)
    cdef const float *products = <const float *> (starts + op.at_once)
    cdef float *out[16]
    cdef const float *residual[16]
    cdef int64_t tile, i, j
    cdef Place corner, at
    for tile in range(count):
        corner = place_of(from_tile + tile, patch)
        for i in range(op.size):
            for j in range(op.size):
                at = Place(corner.image, corner.row * op.size + i, corner.column * op.size + j)
                out[i * op.size + j] = NULL
                if share.begin <= at.row < share.end and at.column < y.width:
                    out[i * op.size + j] = pixel_of(y, at)
                    if other != NULL:
                        residual[i * op.size + j] = pixel_of(other, at)
        run.kernels.winograd_output(products + tile * width, op.at_once * width,
                                    op.bias + (group * panels + panel) * CS_PANEL,
                                    residual if other != NULL else NULL, out, channel, n, <int> op.size,
                                    op.relu)
