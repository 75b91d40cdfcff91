"""One team of threads for the process: started when first needed, asleep while idle, helping one run at a time.

Runs begin in the order in which they ask, as long as those in work leave processors: however many threads ask, no
more compute than the process may use.
"""

from libc.stdint cimport int64_t, uint64_t

from convserve import settings
from convserve.engine import processors

__all__ = ["available_threads", "runs_about", "thread_count"]

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
    int pthread_atfork(void (*)() noexcept nogil, void (*)() noexcept nogil, void (*)() noexcept nogil)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec *)
    int CLOCK_MONOTONIC

cdef extern from * nogil:
    """
    #include <pthread.h>
    #include <sched.h>
    #include <stdint.h>
    #include <string.h>
    #include <unistd.h>

    #if defined(__linux__)
    typedef cpu_set_t cs_processors;
    static inline int cs_read_processors(cs_processors *set) { return !sched_getaffinity(0, sizeof *set, set); }
    static inline void cs_join_processors(cs_processors *set, const cs_processors *more) { CPU_OR(set, set, more); }
    static inline long cs_count_processors(const cs_processors *set) { return CPU_COUNT(set); }
    static inline int cs_same_processors(const cs_processors *a, const cs_processors *b) { return CPU_EQUAL(a, b); }
    static inline void cs_move_thread(pthread_t thread, const cs_processors *set)
    {
        pthread_setaffinity_np(thread, sizeof *set, set);
    }
    #else
    typedef char cs_processors;
    static inline int cs_read_processors(cs_processors *set) { return 0; }
    static inline void cs_join_processors(cs_processors *set, const cs_processors *more) {}
    static inline long cs_count_processors(const cs_processors *set) { return sysconf(_SC_NPROCESSORS_ONLN); }
    static inline int cs_same_processors(const cs_processors *a, const cs_processors *b) { return 1; }
    static inline void cs_move_thread(pthread_t thread, const cs_processors *set) {}
    #endif

    /* The control register of the calling thread's floating-point unit, and the bits in it that take denormal
     * operands and results for zeros. */
    #if defined(__x86_64__)
    #define CS_NO_DENORMALS 0x8040
    static inline unsigned long cs_read_mode(void) { return __builtin_ia32_stmxcsr(); }
    static inline void cs_write_mode(unsigned long mode) { __builtin_ia32_ldmxcsr((unsigned) mode); }
    #elif defined(__aarch64__)
    #define CS_NO_DENORMALS (1ul << 24)
    static inline unsigned long cs_read_mode(void)
    {
        unsigned long mode;
        __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
        return mode;
    }
    static inline void cs_write_mode(unsigned long mode) { __asm__ volatile("msr fpcr, %0" :: "r"(mode)); }
    #else
    #define CS_NO_DENORMALS 0
    static inline unsigned long cs_read_mode(void) { return 0; }
    static inline void cs_write_mode(unsigned long mode) {}
    #endif

    static inline long cs_get(long *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline void cs_set(long *p, long v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
    static inline void cs_add(long *p, long v) { __atomic_add_fetch(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t cs_get_word(uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline void cs_set_word(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
    static inline int cs_lowest_bit(uint64_t v) { return __builtin_ctzll(v); }
    static inline int cs_swap(uint64_t *p, uint64_t before, uint64_t after)
    {
        return __atomic_compare_exchange_n(p, &before, after, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    #if defined(__x86_64__)
    #define cs_pause() __builtin_ia32_pause()
    #else
    #define cs_pause() __asm__ volatile("" ::: "memory")
    #endif
    """
    ctypedef struct cs_processors:
        pass
    int cs_read_processors(cs_processors *)
    void cs_join_processors(cs_processors *, const cs_processors *)
    long cs_count_processors(const cs_processors *)
    int cs_same_processors(const cs_processors *, const cs_processors *)
    void cs_move_thread(pthread_t, const cs_processors *)
    unsigned long CS_NO_DENORMALS
    unsigned long cs_read_mode()
    void cs_write_mode(unsigned long)
    long cs_get(long *)
    void cs_set(long *, long)
    void cs_add(long *, long)
    uint64_t cs_get_word(uint64_t *)
    void cs_set_word(uint64_t *, uint64_t)
    int cs_lowest_bit(uint64_t)
    int cs_swap(uint64_t *, uint64_t, uint64_t)
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
    WAITING_ROOMS = 16
    SPINS = 2000     # pauses before an idle thread sleeps: some tens of microseconds
    PATIENCE = 200   # pauses before a waiting thread lets another one run
    CROWD_NS = 3000000   # runs that were about so lately are likely to be followed by others

# The number of the latest call, and below it one bit for each of its parts that is taken, in one word: who sets a bit
# owns that part, and a call whose parts are not all done is never replaced. So a late thread finds nothing to do,
# and nobody waits for a thread that the system has put aside before it took a part.
cdef uint64_t offered = 0
cdef Call calls[8]
cdef long sleepers = 0
cdef pthread_mutex_t sleep_lock
cdef pthread_cond_t woken
cdef pthread_t workers[256]
cdef int64_t worker_count = 0
cdef cs_processors workers_on   # where the workers may run

# Who computes: runs take tickets, and processors in the order of these.
cdef pthread_mutex_t gate
cdef pthread_cond_t moved_on[16]   # of the ticket number i: number i mod 16
cdef int64_t next_ticket = 0
cdef int64_t turn = 0           # the first ticket that waits
cdef int64_t in_use = 0         # processors that the runs in work have
cdef bint team_taken = False
cdef int64_t in_work = 0        # runs between enter() and leave()
cdef int64_t most_runs = 0      # in work or waiting, at a time not long ago
cdef int64_t most_runs_at = 0   # nanoseconds
cdef cs_processors asked_for    # where any of the runs in work or waiting may run
cdef int64_t quota = 0          # processors that the cgroups allow; 0: all


cdef bint do_part(int64_t thread) noexcept nogil:
    """Take one part of the latest call and do it; False where none is left for this thread.

    A thread begins with the parts that are its own even share, since their rows are likely still in its cache.
    """
    cdef uint64_t word = cs_get_word(&offered)
    cdef Call *call = calls + ((word >> MOST_PARTS) & (CALLS - 1))
    cdef long parts = call.parts, part
    cdef uint64_t free_parts = ~word & ((<uint64_t> 1 << parts) - 1)
    cdef uint64_t own
    if not free_parts or thread >= call.threads:
        return False
    own = free_parts >> (parts * thread // call.threads) << (parts * thread // call.threads)
    part = cs_lowest_bit(own if own else free_parts)
    if cs_swap(&offered, word, word | <uint64_t> 1 << part):
        call.task(call.arg, part, parts, thread)
        cs_add(&call.done, 1)
    return True


cdef void *work(void *number) noexcept nogil:
    cdef int64_t thread = <int64_t> number
    cdef int spins = 0
    cdef uint64_t word
    cs_write_mode(cs_read_mode() | CS_NO_DENORMALS)
    while True:
        if do_part(thread):
            spins = 0
            continue
        spins += 1
        if spins < SPINS:
            cs_pause()
            continue
        word = cs_get_word(&offered) >> MOST_PARTS
        pthread_mutex_lock(&sleep_lock)
        cs_add(&sleepers, 1)
        while cs_get_word(&offered) >> MOST_PARTS == word:
            pthread_cond_wait(&woken, &sleep_lock)
        cs_add(&sleepers, -1)
        pthread_mutex_unlock(&sleep_lock)
        spins = 0


cdef void forget() noexcept nogil:
    """In a forked child, whose only thread is the one that forked: nobody works, waits or computes."""
    global sleepers, worker_count, next_ticket, turn, in_use, in_work, most_runs, team_taken
    cdef int64_t number
    pthread_mutex_init(&sleep_lock, NULL)
    pthread_cond_init(&woken, NULL)
    pthread_mutex_init(&gate, NULL)
    for number in range(WAITING_ROOMS):
        pthread_cond_init(moved_on + number, NULL)
    sleepers = worker_count = next_ticket = turn = in_use = in_work = most_runs = 0
    team_taken = False


cdef bint enlist(int64_t threads, const cs_processors *here) noexcept nogil:
    """Let the team have at least this many threads, all where the caller may run; False where the system refuses."""
    global worker_count, workers_on
    cdef int64_t number
    if not cs_same_processors(here, &workers_on):
        workers_on = here[0]
        for number in range(worker_count):
            cs_move_thread(workers[number], here)
    while worker_count < threads - 1:
        if worker_count + 1 >= MOST_THREADS:
            return False
        if pthread_create(workers + worker_count, NULL, work, <void *> (worker_count + 1)):
            return False
        pthread_detach(workers[worker_count])
        worker_count += 1
    return True


cdef int64_t share_of(int64_t threads) noexcept nogil:
    """How many processors a run of so many threads takes: no more than there are."""
    cdef int64_t count = cs_count_processors(&asked_for)
    if quota:
        count = min(count, quota)
    return max(<int64_t> 1, min(threads, count))


cdef int64_t nanoseconds() noexcept nogil:
    """Return what the monotonic clock shows."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t> now.tv_sec * 1000000000 + now.tv_nsec


cdef int64_t count_runs(int64_t coming) noexcept nogil:
    """Return the most runs that were about at a time, in work, waiting or coming, in the last moments. In the gate."""
    global most_runs, most_runs_at
    cdef int64_t runs = in_work + next_ticket - turn + coming, now = nanoseconds()
    if runs >= most_runs or now - most_runs_at > CROWD_NS:
        most_runs, most_runs_at = runs, now
    return most_runs


cdef bint may_begin(int64_t threads) noexcept nogil:
    return in_use == 0 or (in_use + share_of(threads) <= share_of(MOST_THREADS) and not (threads > 1 and team_taken))


cdef bint enter(int64_t threads, Stay *stay) noexcept nogil:
    """Wait for processors, and with threads > 1 for the team, which then has as many threads, the caller among them.

    Until leave() the caller's floating-point unit takes denormals for zeros, as the team's do.
    False, and nothing to leave, where the system refuses the threads.
    """
    global next_ticket, turn, in_use, in_work, team_taken, asked_for
    cdef int64_t ticket
    cdef bint enlisted = True
    cdef cs_processors here
    pthread_mutex_lock(&gate)
    if not cs_read_processors(&here):
        here = asked_for
    if in_use == 0 and turn == next_ticket:
        asked_for = here
    else:
        cs_join_processors(&asked_for, &here)
    ticket = next_ticket
    next_ticket += 1
    while ticket != turn or not may_begin(threads):
        pthread_cond_wait(moved_on + ticket % WAITING_ROOMS, &gate)
    turn += 1
    stay.threads = threads
    stay.processors = share_of(threads)
    stay.mode = cs_read_mode()
    in_use += stay.processors
    in_work += 1
    if threads > 1:
        team_taken = True
        enlisted = enlist(threads, &here)
    if turn != next_ticket:
        pthread_cond_broadcast(moved_on + turn % WAITING_ROOMS)
    pthread_mutex_unlock(&gate)
    if enlisted:
        cs_write_mode(stay.mode | CS_NO_DENORMALS)
    else:
        leave(stay)
    return enlisted


cdef void leave(Stay *stay) noexcept nogil:
    """Let the next run have what enter() took, and the caller its floating-point unit as it was."""
    global in_use, in_work, team_taken
    cs_write_mode(stay.mode)
    pthread_mutex_lock(&gate)
    count_runs(0)
    in_use -= stay.processors
    in_work -= 1
    if stay.threads > 1:
        team_taken = False
    if turn != next_ticket:
        pthread_cond_broadcast(moved_on + turn % WAITING_ROOMS)
    pthread_mutex_unlock(&gate)


cdef void run_parts(Task task, void *arg, int64_t parts, int64_t threads) noexcept nogil:
    """Call task(arg, part, parts, thread) once for each part, on the threads that have time; return when all are done.

    The caller is thread 0 and has the team; parts are at most MOST_PARTS.
    """
    cdef uint64_t number = (cs_get_word(&offered) >> MOST_PARTS) + 1
    cdef Call *call = calls + (number & (CALLS - 1))
    cdef int spins = 0
    call.task = task
    call.arg = arg
    call.parts = parts
    call.threads = threads
    cs_set(&call.done, 0)
    cs_set_word(&offered, number << MOST_PARTS)
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
    """Return how many processors the calling thread may use: the affinity mask, and the cgroups' limit rounded up."""
    global quota
    mask = processors.affinity()
    quota = processors.quota(mask) or 0
    return min(len(mask), quota or len(mask))


def runs_about() -> int:
    """Return the most runs of this process that were about at a time in the last milliseconds, with one to come."""
    cdef int64_t runs
    pthread_mutex_lock(&gate)
    runs = count_runs(1)
    pthread_mutex_unlock(&gate)
    return runs


def thread_count(asked: int | None = None) -> int:
    """Return the threads of a run: the number asked for, else CONVSERVE_THREADS, else all that are available."""
    available = available_threads()
    return asked or settings.get("THREADS") or available


forget()
cs_read_processors(&workers_on)
pthread_atfork(NULL, NULL, forget)
