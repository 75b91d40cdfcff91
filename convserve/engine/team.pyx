"""One team of threads for the process: started when first needed, asleep while idle, helping one run at a time."""

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

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from * nogil:
    """
    static inline long cs_get(long *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline void cs_set(long *p, long v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
    static inline void cs_add(long *p, long v) { __atomic_add_fetch(p, v, __ATOMIC_SEQ_CST); }
    static inline int cs_swap(long *p, long before, long after)
    {
        return __atomic_compare_exchange_n(p, &before, after, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    #if defined(__x86_64__)
    #define cs_pause() __builtin_ia32_pause()
    #else
    #define cs_pause() __asm__ volatile("" ::: "memory")
    #endif
    """
    long cs_get(long *)
    void cs_set(long *, long)
    void cs_add(long *, long)
    int cs_swap(long *, long, long)
    void cs_pause()

cdef struct Call:
    # Work that is offered in parts to whoever has time.
    Task task
    void *arg
    long parts
    long threads   # threads with a lower number may help
    long done      # parts that are finished

cdef enum:
    MOST_THREADS = 256
    CALLS = 8
    PART_BITS = 20
    SPINS = 2000     # pauses before an idle thread sleeps: some tens of microseconds
    PATIENCE = 200   # pauses before a waiting thread lets another one run

# The number of the latest call and the next of its parts in one word: who raises the word by one owns that part,
# and a call whose parts are not all done is never replaced. So a late thread finds nothing to do, and nobody
# waits for a thread that the system has put aside before it took a part.
cdef long offered = 0
cdef Call calls[8]
cdef long sleepers = 0
cdef pthread_mutex_t sleep_lock
cdef pthread_cond_t woken
cdef pthread_mutex_t one_run
cdef int64_t workers = 0
cdef int team_pid = 0


cdef bint do_part(int64_t thread) noexcept nogil:
    """Take one part of the latest call and do it; False where none is left for this thread."""
    cdef long word = cs_get(&offered)
    cdef Call *call = calls + ((word >> PART_BITS) & (CALLS - 1))
    cdef long part = word & ((1 << PART_BITS) - 1)
    cdef long parts = call.parts
    if part >= parts or thread >= call.threads:
        return False
    if cs_swap(&offered, word, word + 1):
        call.task(call.arg, part, parts, thread)
        cs_add(&call.done, 1)
    return True


cdef void *work(void *number) noexcept nogil:
    cdef int64_t thread = <int64_t> number
    cdef int spins = 0
    cdef long word
    while True:
        if do_part(thread):
            spins = 0
            continue
        spins += 1
        if spins < SPINS:
            cs_pause()
            continue
        word = cs_get(&offered) >> PART_BITS
        pthread_mutex_lock(&sleep_lock)
        cs_add(&sleepers, 1)
        while cs_get(&offered) >> PART_BITS == word:
            pthread_cond_wait(&woken, &sleep_lock)
        cs_add(&sleepers, -1)
        pthread_mutex_unlock(&sleep_lock)
        spins = 0


cdef bint take_team(int64_t threads) noexcept nogil:
    """Wait for the team, and let it have at least this many threads, the caller among them; False where it cannot."""
    global workers, team_pid, sleepers, offered
    cdef pthread_t handle
    pthread_mutex_lock(&one_run)
    if team_pid != getpid():   # after a fork the workers are gone
        pthread_mutex_init(&sleep_lock, NULL)
        pthread_cond_init(&woken, NULL)
        sleepers = 0
        workers = 0
        team_pid = getpid()
    while workers < threads - 1:
        if workers + 1 >= MOST_THREADS or pthread_create(&handle, NULL, work, <void *> (workers + 1)):
            pthread_mutex_unlock(&one_run)
            return False
        pthread_detach(handle)
        workers += 1
    return True


cdef void give_team() noexcept nogil:
    """Let the next run have the team."""
    pthread_mutex_unlock(&one_run)


cdef void run_parts(Task task, void *arg, int64_t parts, int64_t threads) noexcept nogil:
    """Call task(arg, part, parts, thread) once for each part, on the threads that have time; return when all are done.

    The caller is thread 0 and has the team; parts are at most 2^20.
    """
    cdef long number = (cs_get(&offered) >> PART_BITS) + 1
    cdef Call *call = calls + (number & (CALLS - 1))
    cdef int spins = 0
    call.task = task
    call.arg = arg
    call.parts = parts
    call.threads = threads
    cs_set(&call.done, 0)
    cs_set(&offered, number << PART_BITS)
    if cs_get(&sleepers):
        pthread_mutex_lock(&sleep_lock)
        pthread_cond_broadcast(&woken)
        pthread_mutex_unlock(&sleep_lock)
    while do_part(0):
        pass
    while cs_get(&call.done) != parts:
        spins += 1
        if spins % PATIENCE:
            cs_pause()
        else:
            sched_yield()


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


pthread_mutex_init(&one_run, NULL)
