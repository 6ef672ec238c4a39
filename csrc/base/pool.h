/*
 * pool.h - one pool of threads per process, for short parallel regions.
 *
 * The threads start at first use. Between regions they spin briefly and then sleep. A forked child
 * starts its own threads. tl_pool_shutdown joins them. The pool runs one region at a time: a caller
 * that finds it taken runs its region alone, on its own thread, so that no caller waits.
 */
#ifndef TL_POOL_H
#define TL_POOL_H

#include "base/base.h"

#define TL_MAX_THREADS 256
#define TL_MAX_TASKS ((1u << 20) - 1)

/* Runs one task: task < tasks, and thread < threads of the call. The caller is thread 0. */
typedef void tl_task_fn(void *arg, size_t task, int thread);

/*
 * Runs tasks 0 .. tasks - 1 <= TL_MAX_TASKS, each once, on at most `threads` threads with the
 * caller among them. `poll`, if not NULL, is called between tasks on the calling thread; once it
 * returns non-zero, tasks that have not begun are dropped and TL_ESTOP is returned.
 */
int tl_pool_run(int threads, size_t tasks, tl_task_fn *fn, void *arg, int (*poll)(void *user),
                void *user);

/* The same for any number of tasks. */
int tl_pool_run_all(int threads, size_t tasks, tl_task_fn *fn, void *arg, int (*poll)(void *user),
                    void *user);

/* Ends and joins the threads. The pool starts them again at its next use. */
void tl_pool_shutdown(void);

#endif
