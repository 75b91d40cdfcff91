from convserve.kernels.rows cimport Op, Run, Share

cdef void winograd_input_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
cdef void winograd_output_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
