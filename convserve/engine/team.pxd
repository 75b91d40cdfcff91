from libc.stdint cimport int64_t

ctypedef void (*Task)(void *arg, int64_t part, int64_t parts, int64_t thread) noexcept nogil

cdef bint take_team(int64_t threads) noexcept nogil
cdef void give_team() noexcept nogil
cdef void run_parts(Task task, void *arg, int64_t parts, int64_t threads) noexcept nogil
