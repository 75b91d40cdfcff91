"""Winograd convolutions of a band of rows: tiles transformed into one tensor, and multiplied out of it.

A row of the transformed tensor V is a row of 4x4 output tiles; each of its pixels holds 36 runs of channels,
16 floats further apart than they are long, so that tiles do not lie a multiple of 4096 bytes apart.
"""

from libc.stdint cimport int64_t

from convserve.kernels.dispatch cimport CS_PANEL, cs_gemm_params
from convserve.kernels.rows cimport Op, Place, Ring, Run, Share, part_of, pixel_of, place_of, ring_row

cdef enum:
    TILE = 4
    REACH = 6
    POINTS = 36
    GROUP = 56   # tiles whose products lie in scratch at a time

cdef float no_bias[32]


cdef void winograd_input_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of V from the convolution's input."""
    cdef int64_t begin = share.begin, end = share.end
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *v = run.rings + op.output
    cdef int64_t rows = end - begin, pitch = v.channels // POINTS
    cdef int64_t first, last, tile, i, j, y
    cdef Place at
    cdef const float *start
    cdef const float *pixels[36]
    part_of(run.images * rows * v.width, share, &first, &last)
    for tile in range(first, last):
        at = place_of(tile, begin, rows, v.width)
        for i in range(REACH):
            y = at.row * TILE - op.pad_top + i
            if 0 <= y < x.height:
                start = ring_row(x, at.image, y)
            else:
                start = run.zeros + x.pad_left * x.pixel_pitch
            start += (at.column * TILE - op.pad_left) * x.pixel_pitch
            for j in range(REACH):
                pixels[i * REACH + j] = start + j * x.pixel_pitch
        run.kernels.winograd_input(x.channels, pixels, pixel_of(v, at), pitch)


cdef void winograd_output_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of the convolution's output from V; one part of the tiles or of the weight panels."""
    cdef int64_t begin = share.begin, end = share.end
    cdef const Ring *v = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef int64_t first_row = begin // TILE
    cdef int64_t rows = (end + TILE - 1) // TILE - first_row
    cdef int64_t tiles = run.images * rows * v.width
    cdef int64_t panels = (y.channels + CS_PANEL - 1) // CS_PANEL
    cdef int64_t pairs = (panels + run.kernels.panels - 1) // run.kernels.panels
    cdef int64_t first = 0, last = tiles, first_pair = 0, last_pair = pairs
    cdef int64_t from_tile, count, pair
    if share.parts > 1:
        if pairs >= share.parts and y.channels > tiles:
            part_of(pairs, share, &first_pair, &last_pair)
        else:
            part_of(tiles, share, &first, &last)
    from_tile = first
    while from_tile < last:
        count = min(<int64_t> GROUP, last - from_tile)
        for pair in range(first_pair, last_pair):
            multiply(op, run, share, first_row, rows, from_tile, count, pair)
            finish(op, run, share, first_row, rows, from_tile, count, pair)
        from_tile += count


cdef void multiply(const Op *op, const Run *run, const Share *share, int64_t first_row, int64_t rows,
                   int64_t from_tile, int64_t count, int64_t pair) noexcept nogil:
    # products[point][tile][channel of the pair] = V * U, 36 small GEMMs
    cdef const Ring *v = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef int64_t mr = run.kernels.mr, width = run.kernels.panels * CS_PANEL
    cdef int64_t pitch = v.channels // POINTS, channels = pitch - 16
    cdef int64_t panels = (y.channels + CS_PANEL - 1) // CS_PANEL
    cdef int64_t blocks = (count + mr - 1) // mr
    cdef int64_t point, block, tile, after, number
    cdef const float **starts = <const float **> (run.scratch + share.thread * run.scratch_pitch)
    cdef float *products = <float *> (starts + GROUP)
    cdef const float *a[16]
    cdef float *c[16]
    cdef cs_gemm_params params
    for tile in range(count):
        starts[tile] = pixel_of(v, place_of(from_tile + tile, first_row, rows, v.width))
    params.segments = 1
    params.segment_length = channels
    params.a = a
    params.panel_pitch = channels * CS_PANEL
    params.bias = no_bias
    params.c = c
    params.residual = NULL
    params.channel = 0
    params.n = min(width, (panels - pair * run.kernels.panels) * CS_PANEL)
    params.relu = 0
    for point in range(POINTS):
        params.b = op.weights + (point * panels + pair * run.kernels.panels) * params.panel_pitch
        tile = 0
        for block in range(blocks):
            after = count * (block + 1) // blocks
            for number in range(after - tile):
                a[number] = starts[tile + number] + point * pitch
                c[number] = products + (point * GROUP + tile + number) * width
            run.kernels.gemm(&params, <int> (after - tile))
            tile = after


cdef void finish(const Op *op, const Run *run, const Share *share, int64_t first_row, int64_t rows,
                 int64_t from_tile, int64_t count, int64_t pair) noexcept nogil:
    # products to outputs: rows of other steps and columns behind the image are left away
    cdef const Ring *v = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef const Ring *other = run.rings + op.inputs[1] if op.input_count > 1 else NULL
    cdef int64_t width = run.kernels.panels * CS_PANEL
    cdef int64_t channel = pair * width, n = min(width, y.channels - pair * width)
    cdef const float **starts = <const float **> (run.scratch + share.thread * run.scratch_pitch)
    cdef const float *products = <const float *> (starts + GROUP)
    cdef float *out[16]
    cdef const float *residual[16]
    cdef int64_t tile, i, j
    cdef Place corner, at
    for tile in range(count):
        corner = place_of(from_tile + tile, first_row, rows, v.width)
        for i in range(TILE):
            for j in range(TILE):
                at = Place(corner.image, corner.row * TILE + i, corner.column * TILE + j)
                out[i * TILE + j] = NULL
                if share.begin <= at.row < share.end and at.column < y.width:
                    out[i * TILE + j] = pixel_of(y, at)
                    if other != NULL:
                        residual[i * TILE + j] = pixel_of(other, at)
        run.kernels.winograd_output(products + tile * width, GROUP * width, op.bias + channel,
                                    residual if other != NULL else NULL, out, channel, n, op.relu)
