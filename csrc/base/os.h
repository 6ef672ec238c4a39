/*
 * os.h - what the core asks of the operating system: files, memory, CPUs, clock, threads.
 *
 * Only os_posix.c, os_windows.c and os_limits.c know which system this is. Linux and macOS; the
 * file for Windows is written from its documentation and has not been run.
 */
#ifndef TL_OS_H
#define TL_OS_H

#include "base/base.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <pthread.h>
#endif

/* ---- files ---- */

/* The bytes of a file, mapped or read. */
struct tl_file {
    const uint8_t *data; // never NULL, also for an empty file
    size_t size;
    bool mapped;
};

/*
 * Opens a regular file, read-only. `path` is in the file system's encoding (UTF-8 on Windows).
 * Mapped: pages come in when touched; a file that somebody truncates meanwhile kills the process
 * when its lost pages are read. Not mapped: the bytes are read into memory of our own.
 * After an error *file is empty and needs no tl_file_close.
 */
int tl_file_open(struct tl_file *file, const char *path, bool mapped, struct tl_error *err);
void tl_file_close(struct tl_file *file);

/* ---- memory ---- */

size_t tl_page_size(void);

/* As tl_alloc, for blocks of megabytes: in huge pages where the system has them. */
void *tl_alloc_huge(size_t bytes);

/*
 * Bytes that this process may still take before the machine swaps or its control group is
 * killed; UINT64_MAX when the system does not tell.
 */
uint64_t tl_memory_available(void);

/* ---- CPUs ---- */

/*
 * CPUs that this process may keep busy, at least 1: those of its affinity mask, no more than its
 * control group's quota pays for. `cores`: two hardware threads of one core count once.
 */
int tl_cpu_count(bool cores);

/* Whether an ARM CPU has the integer dot product; false on others. */
bool tl_cpu_has_dot_product(void);

/* ---- clock ---- */

/* Nanoseconds since some moment in the past; never goes back. */
uint64_t tl_clock_ns(void);

/* ---- threads ---- */

/* Stays where it is from create to join. */
struct tl_thread {
    void (*run)(void *arg);
    void *arg;
#ifdef _WIN32
    HANDLE handle;
#else
    pthread_t handle;
#endif
};

struct tl_mutex {
#ifdef _WIN32
    SRWLOCK lock;
#else
    pthread_mutex_t lock;
#endif
};

struct tl_cond {
#ifdef _WIN32
    CONDITION_VARIABLE cond;
#else
    pthread_cond_t cond;
#endif
};

/* The new thread takes no signals: they go on to the threads that were there before. */
int tl_thread_create(struct tl_thread *t, void (*run)(void *arg), void *arg, struct tl_error *err);
void tl_thread_join(struct tl_thread *t);
void tl_thread_yield(void);

void tl_mutex_init(struct tl_mutex *m);
void tl_mutex_destroy(struct tl_mutex *m);
void tl_mutex_lock(struct tl_mutex *m);
void tl_mutex_unlock(struct tl_mutex *m);

void tl_cond_init(struct tl_cond *c);
void tl_cond_destroy(struct tl_cond *c);
void tl_cond_wait(struct tl_cond *c, struct tl_mutex *m); // may wake without a reason
void tl_cond_signal(struct tl_cond *c);
void tl_cond_broadcast(struct tl_cond *c);

/* Differs in a child after fork, where the parent's threads do not exist. */
uint64_t tl_process_id(void);

#endif
