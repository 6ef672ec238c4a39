/* pool.c - one pool of threads per process, for short parallel regions. */
#include "base/pool.h"

#include "base/fpu.h"
#include "base/os.h"

#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#elif defined(__aarch64__) && defined(__GNUC__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

/* Rounds of spinning before a thread sleeps, a few microseconds. Longer spinning would take the
   core from other processes. */
#define SPINS 1000

/* How long the end of the process waits for a region that is running. */
#define SHUTDOWN_NS 2000000000u

/*
 * A thread claims a task by one compare-and-swap of the ticket. The ticket holds everything that a
 * claim depends on, so a late thread can never claim a task of a job that it has not seen: 24 bits
 * of the job's number, 20 bits of its number of tasks, 20 bits of the next task.
 */
#define TICKET(job, tasks, next) ((uint64_t)(job) << 40 | (uint64_t)(tasks) << 20 | (next))
#define TICKET_JOB(t) ((uint32_t)((t) >> 40))
#define TICKET_TASKS(t) ((uint32_t)((t) >> 20) & TL_MAX_TASKS)
#define TICKET_NEXT(t) ((uint32_t)(t)&TL_MAX_TASKS)
#define JOB_MASK 0xffffffu

static struct {
    _Atomic uint64_t process; // id of the process that set the pool up
    atomic_flag taken;        // by a region, or by shutdown
    struct tl_mutex lock;     // for sleeping only
    struct tl_cond wake;
    atomic_int sleepers;
    atomic_bool quit;
    int n_threads; // started by the pool; the caller is not one of them
    struct tl_thread threads[TL_MAX_THREADS];
    // the job
    tl_task_fn *fn;
    void *arg;
    atomic_int limit; // threads that may take part
    _Atomic uint32_t job;
    _Atomic uint64_t ticket;
    atomic_uint done;
} pool;

/* Claims and runs tasks of `job` until none is left; false if the poll asks to stop. */
static bool work(uint32_t job, int thread, int (*poll)(void *user), void *user) {
    uint64_t t = atomic_load(&pool.ticket);
    for (;;) {
        if (TICKET_JOB(t) != job || TICKET_NEXT(t) >= TICKET_TASKS(t)) return true;
        if (!atomic_compare_exchange_weak(&pool.ticket, &t, t + 1)) continue;
        pool.fn(pool.arg, TICKET_NEXT(t), thread);
        atomic_fetch_add(&pool.done, 1);
        if (poll != NULL && poll(user) != 0) return false;
        t = atomic_load(&pool.ticket);
    }
}

static void worker(void *arg) {
    const int thread = (int)(uintptr_t)arg;
    uint32_t seen = 0;
    (void)tl_fpu_enter();
    for (;;) {
        for (int i = 0; atomic_load(&pool.job) == seen && i < SPINS; i++) PAUSE();
        if (atomic_load(&pool.job) == seen) {
            tl_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.sleepers, 1);
            while (atomic_load(&pool.job) == seen) tl_cond_wait(&pool.wake, &pool.lock);
            atomic_fetch_sub(&pool.sleepers, 1);
            tl_mutex_unlock(&pool.lock);
        }
        if (atomic_load(&pool.quit)) return;
        seen = atomic_load(&pool.job);
        if (thread < atomic_load(&pool.limit)) work(seen, thread, NULL, NULL);
    }
}

/* Publishes the next job. The ticket is stored before the job's number, which workers wait for. */
static uint32_t publish(size_t tasks) {
    uint32_t next = (atomic_load(&pool.job) + 1) & JOB_MASK;
    if (next == 0) next = 1; // workers start with 0
    atomic_store(&pool.done, 0);
    atomic_store(&pool.ticket, TICKET(next, tasks, 0));
    atomic_store(&pool.job, next);
    if (atomic_load(&pool.sleepers) > 0) {
        tl_mutex_lock(&pool.lock);
        tl_cond_broadcast(&pool.wake);
        tl_mutex_unlock(&pool.lock);
    }
    return next;
}

/* Id of the process that is setting the pool up or has done so. */
static _Atomic uint64_t setting_up;

/* Sets the pool up once per process. A forked child has only the thread that forked, so it forgets
   the parent's threads and starts its own. */
static void set_up(void) {
    const uint64_t process = tl_process_id();
    uint64_t before = atomic_load(&setting_up);
    if (atomic_load(&pool.process) == process) return;
    if (before == process || !atomic_compare_exchange_strong(&setting_up, &before, process)) {
        while (atomic_load(&pool.process) != process) tl_thread_yield();
        return;
    }
    memset(&pool, 0, sizeof(pool));
    atomic_flag_clear(&pool.taken);
    tl_mutex_init(&pool.lock);
    tl_cond_init(&pool.wake);
    atomic_store(&pool.process, process);
}

static int run_alone(size_t tasks, tl_task_fn *fn, void *arg, int (*poll)(void *user), void *user) {
    for (size_t i = 0; i < tasks; i++) {
        fn(arg, i, 0);
        if (poll != NULL && poll(user) != 0) return TL_ESTOP;
    }
    return TL_OK;
}

int tl_pool_run(int threads, size_t tasks, tl_task_fn *fn, void *arg, int (*poll)(void *user),
                void *user) {
    struct tl_error ignored;
    uint32_t job, claimed = (uint32_t)tasks;
    int status = TL_OK;
    const unsigned losses = tl_file_losses();

    if (threads > TL_MAX_THREADS) threads = TL_MAX_THREADS;
    if ((size_t)threads > tasks) threads = (int)tasks;
    if (threads <= 1) return run_alone(tasks, fn, arg, poll, user);
    set_up();
    if (atomic_flag_test_and_set(&pool.taken)) return run_alone(tasks, fn, arg, poll, user);

    while (pool.n_threads < threads - 1) {
        struct tl_thread *t = &pool.threads[pool.n_threads];
        // if a thread cannot be started, the region runs on fewer
        if (tl_thread_create(t, worker, (void *)(uintptr_t)(pool.n_threads + 1), &ignored)) break;
        pool.n_threads++;
    }
    pool.fn = fn;
    pool.arg = arg;
    atomic_store(&pool.limit, threads);
    job = publish(tasks);
    if (!work(job, 0, poll, user)) {
        uint64_t t = atomic_exchange(&pool.ticket, TICKET(job, tasks, tasks));
        claimed = TL_MIN(TICKET_NEXT(t), (uint32_t)tasks);
        status = TL_ESTOP;
    }
    for (int i = 0; atomic_load(&pool.done) < claimed; i++) {
        if (i < SPINS) {
            PAUSE();
        } else {
            tl_thread_yield();
        }
    }
    atomic_flag_clear(&pool.taken);
    // a worker may have read a lost part of a file after the last poll
    if (status == TL_OK && poll != NULL && tl_file_losses() != losses && poll(user) != 0) {
        status = TL_ESTOP;
    }
    return status;
}

/* The tasks from `first` on, of a loop with more tasks than one run can have. */
struct some_tasks {
    tl_task_fn *fn;
    void *arg;
    size_t first;
};

static void later_task(void *arg, size_t task, int thread) {
    const struct some_tasks *some = arg;
    some->fn(some->arg, some->first + task, thread);
}

int tl_pool_run_all(int threads, size_t tasks, tl_task_fn *fn, void *arg, int (*poll)(void *user),
                    void *user) {
    struct some_tasks some = {fn, arg, 0};
    int status = tl_pool_run(threads, TL_MIN(tasks, TL_MAX_TASKS), fn, arg, poll, user);
    for (some.first = TL_MAX_TASKS; some.first < tasks && status == TL_OK;
         some.first += TL_MAX_TASKS) {
        status = tl_pool_run(threads, TL_MIN(tasks - some.first, TL_MAX_TASKS), later_task, &some,
                             poll, user);
    }
    return status;
}

void tl_pool_shutdown(void) {
    if (atomic_load(&pool.process) != tl_process_id()) return;
    // A thread that the interpreter ended within a region never gives the pool back. The process
    // is about to exit, so its threads may be left to the system.
    for (const uint64_t start = tl_clock_ns(); atomic_flag_test_and_set(&pool.taken);) {
        if (tl_clock_ns() - start > SHUTDOWN_NS) return;
        tl_thread_yield();
    }
    atomic_store(&pool.quit, true);
    atomic_store(&pool.limit, 0);
    publish(0);
    for (int i = 0; i < pool.n_threads; i++) tl_thread_join(&pool.threads[i]);
    tl_cond_destroy(&pool.wake);
    tl_mutex_destroy(&pool.lock);
    memset(&pool, 0, sizeof(pool)); // set_up() starts from zeros
    atomic_store(&setting_up, 0);
}
