from libc.stdint cimport int64_t

cdef enum:
    MOST_PARTS = 40   # of one call

ctypedef void (*Task)(void *arg, int64_t part, int64_t parts, int64_t thread) noexcept nogil

cdef struct Stay:
    # What one run holds between enter() and leave().
    int64_t threads
    int64_t processors
    unsigned long mode   # of the caller's floating-point unit, as it was

cdef int64_t nanoseconds() noexcept nogil
cdef bint enter(int64_t threads, Stay *stay) noexcept nogil
cdef void leave(Stay *stay) noexcept nogil
cdef void run_parts(Task task, void *arg, int64_t parts, int64_t threads) noexcept nogil
