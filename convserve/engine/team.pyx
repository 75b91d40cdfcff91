"""One team of threads for the process: started when first needed, asleep while idle, one parallel region at a time."""

import os

from libc.stdint cimport int64_t

from convserve import settings

__all__ = ["available_threads", "thread_count"]

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_cond_init(pthread_cond_t *, void *)
    int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *)
    int pthread_cond_broadcast(pthread_cond_t *)
    int pthread_create(pthread_t *, void *, void *(*)(void *) noexcept nogil, void *)
    int pthread_detach(pthread_t)

cdef extern from "<unistd.h>" nogil:
    int getpid()

cdef extern from * nogil:
    """
    static inline long cs_get(long *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline void cs_set(long *p, long v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
    static inline long cs_increment(long *p) { return __atomic_add_fetch(p, 1, __ATOMIC_SEQ_CST); }
    static inline void cs_decrement(long *p) { __atomic_sub_fetch(p, 1, __ATOMIC_SEQ_CST); }
    #if defined(__x86_64__)
    #define cs_pause() __builtin_ia32_pause()
    #else
    #define cs_pause() __asm__ volatile("" ::: "memory")
    #endif
    """
    long cs_get(long *)
    void cs_set(long *, long)
    long cs_increment(long *)
    void cs_decrement(long *)
    void cs_pause()

cdef struct Gate:
    # A counter that threads wait for: a short spin, then sleep, since a stolen processor makes spinning costly.
    long value
    long sleepers
    pthread_mutex_t mutex
    pthread_cond_t opened

cdef enum:
    MOST_THREADS = 256
    SPINS = 2000

cdef Gate posted       # regions given to the workers
cdef Gate passed       # barriers that all threads have reached
cdef Gate ended        # regions that all workers have come out of
cdef long arrived = 0
cdef long finished = 0
cdef long born[256]    # what `posted` was when a worker was made
cdef pthread_mutex_t one_region
cdef Region region_now = NULL
cdef void *region_arg = NULL
cdef int64_t region_threads = 0
cdef int64_t workers = 0
cdef int team_pid = 0


cdef void init_gate(Gate *gate) noexcept nogil:
    gate.value = 0
    gate.sleepers = 0
    pthread_mutex_init(&gate.mutex, NULL)
    pthread_cond_init(&gate.opened, NULL)


cdef void open_gate(Gate *gate) noexcept nogil:
    cs_increment(&gate.value)
    if cs_get(&gate.sleepers):
        pthread_mutex_lock(&gate.mutex)
        pthread_cond_broadcast(&gate.opened)
        pthread_mutex_unlock(&gate.mutex)


cdef void wait_behind(Gate *gate, long value) noexcept nogil:
    """Return once the gate's value is another than the given one."""
    cdef int _spin
    for _spin in range(SPINS):
        if cs_get(&gate.value) != value:
            return
        cs_pause()
    pthread_mutex_lock(&gate.mutex)
    cs_increment(&gate.sleepers)
    while cs_get(&gate.value) == value:
        pthread_cond_wait(&gate.opened, &gate.mutex)
    cs_decrement(&gate.sleepers)
    pthread_mutex_unlock(&gate.mutex)


cdef void barrier(int64_t threads) noexcept nogil:
    """Wait until all threads of the region are here; what each wrote before, all see after."""
    global arrived
    cdef long value = cs_get(&passed.value)
    if cs_increment(&arrived) == threads:
        cs_set(&arrived, 0)
        open_gate(&passed)
    else:
        wait_behind(&passed, value)


cdef void *work(void *number) noexcept nogil:
    cdef int64_t thread = <int64_t> number
    cdef long seen = born[thread]
    while True:
        wait_behind(&posted, seen)
        seen += 1   # nothing more is posted before all workers have come to the end below
        if thread < region_threads:
            region_now(region_arg, thread)
        if cs_increment(&finished) == workers:
            open_gate(&ended)


cdef void start_team() noexcept nogil:
    global arrived, workers, team_pid
    init_gate(&posted)
    init_gate(&passed)
    init_gate(&ended)
    arrived = 0
    workers = 0
    team_pid = getpid()


cdef int64_t run_region(Region region, void *arg, int64_t threads) noexcept nogil:
    """Call region(arg, 0 .. threads-1) in parallel and return once all have come back.

    Regions from several callers run one after another; a region of one thread runs in its caller, beside
    the others. Returns 0 without calling anything where the system gives no more threads.
    """
    global region_now, region_arg, region_threads, workers
    cdef pthread_t handle
    cdef long value
    if threads <= 1:
        region(arg, 0)
        return 1
    pthread_mutex_lock(&one_region)
    if team_pid != getpid():   # after a fork the workers are gone
        start_team()
    while workers < threads - 1:
        born[workers + 1] = cs_get(&posted.value)
        if workers + 1 >= MOST_THREADS or pthread_create(&handle, NULL, work, <void *> (workers + 1)):
            pthread_mutex_unlock(&one_region)
            return 0
        pthread_detach(handle)
        workers += 1
    region_now = region
    region_arg = arg
    region_threads = threads
    cs_set(&finished, 0)
    value = cs_get(&ended.value)
    open_gate(&posted)
    region(arg, 0)
    wait_behind(&ended, value)
    pthread_mutex_unlock(&one_region)
    return threads


def available_threads() -> int:
    """Return how many processors this process may use: the affinity mask, and the cgroup's cpu.max rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()[:2]
        if quota != "max":
            count = min(count, max(1, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        pass  # no cgroup of version 2: the mask decides
    return count


def thread_count(asked: int | None = None) -> int:
    """Return the threads of a run: the number asked for, else CONVSERVE_THREADS, else all that are available."""
    return asked or settings.get("THREADS") or available_threads()


pthread_mutex_init(&one_region, NULL)
