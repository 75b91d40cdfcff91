# A plan in C structures, as the executor walks it.
from libc.stdint cimport int64_t

from convserve.formats.mapping cimport Mapping
from convserve.kernels.dispatch cimport cs_kernels
from convserve.kernels.rows cimport Op, RowKernel, Taps


cdef enum StepKind:
    RUN_STEP
    READ_STEP
    WRITE_STEP
    ZERO_STEP
    POISON_STEP

cdef struct Step:
    StepKind kind
    int64_t parts     # shares that it is offered in
    RowKernel kernel
    int64_t index     # an operation, or for ZERO_STEP and POISON_STEP a ring
    int64_t begin
    int64_t end
    int64_t advance

cdef struct Block:
    int64_t first
    int64_t count
    int64_t repeats
    int64_t first_release   # what nobody reads behind the block
    int64_t release_count

cdef struct Release:
    # pages of weights in a mapped file
    char *begin
    size_t size


cdef class Executor:
    cdef Op *ops
    cdef int64_t *inputs
    cdef Step *steps
    cdef Block *blocks
    cdef Release *releases
    cdef int64_t block_count
    cdef const cs_kernels *kernels
    cdef readonly object plan
    cdef readonly str isa
    cdef readonly bint evict_weights
    cdef readonly Mapping mapping   # the file that weights are mapped from, or None
    cdef list kept   # the arrays whose memory the operations point into
    cdef dict kept_of   # those of each operation, by its index
    cdef const float *_values(self, array) except? NULL
    cdef int _bind_panels(self, Op *op, panels) except -1
    cdef int _bind_taps(self, Taps *bound, node, int axis, size, count) except -1
    cdef int _bind_moves(self, Op *op, node, x, y) except -1
    cdef int _bind_operations(self, plan) except -1
    cdef int _bind_node(self, Op *op, node, operation, program) except -1
    cdef int _bind_steps(self, plan) except -1
    cdef int _bind_releases(self, plan) except -1
