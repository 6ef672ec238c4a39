/*
 * os.h - what the core asks of the operating system: files, memory, CPUs, clock, threads.
 *
 * Only the files named os_* depend on the system. They serve Linux and macOS; os_windows.c was
 * written from the documentation and has never been run.
 */
#ifndef TL_OS_H
#define TL_OS_H

#include "base/base.h"
#include "base/hash.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <pthread.h>
#endif

/* ---- files ---- */

/* The bytes of a file, mapped or read. */
struct tl_file {
    const uint8_t *data; // never NULL, not even for an empty file
    size_t size;
    bool mapped;
    struct tl_guard *guard; // of a mapping; see os_guard.h
};

/*
 * Opens a regular file, read-only. `path` is in the file system's encoding (UTF-8 on Windows).
 * Mapped: the system reads a page when it is first touched. If another process makes the file
 * shorter, bytes beyond its end read as zeros, and tl_file_lost tells it. Not mapped: the bytes are
 * read into memory.
 * After an error *file is empty and needs no tl_file_close.
 */
int tl_file_open(struct tl_file *file, const char *path, bool mapped, struct tl_error *err);
void tl_file_close(struct tl_file *file);

/*
 * Lets the system drop the pages of a part of a mapped file from memory; they are read again when
 * needed. Pages that the part shares with its neighbours are dropped, too. Nothing happens if the
 * file is not mapped.
 */
void tl_file_forget(const struct tl_file *file, const uint8_t *data, size_t bytes);

/* Whether a part of a mapped file could not be read. What was read from it may be zeros. */
bool tl_file_lost(const struct tl_file *file);

/* How often that has happened in this process, for any file. */
unsigned tl_file_losses(void);

/* ---- memory ---- */

size_t tl_page_size(void);

/* Like tl_alloc, for blocks of megabytes: in huge pages where the system has them. */
void *tl_alloc_huge(size_t bytes);

/*
 * Bytes that this process may still allocate before the machine swaps or the process exceeds the
 * limit of its control group; UINT64_MAX if unknown.
 */
uint64_t tl_memory_available(void);

/* ---- CPUs ---- */

/*
 * CPUs that this process may keep busy, at least 1: those of its affinity mask, and no more than
 * the quota of its control group allows. `cores`: the hardware threads of a core count once.
 */
int tl_cpu_count(bool cores);

/* Whether an ARM CPU has the integer dot product; false on others. */
bool tl_cpu_has_dot_product(void);

/*
 * Asks the operating system to save the tiles of AMX when it switches threads; false if it does
 * not. Linux needs to be asked, once per process (its arch/x86/kernel/fpu/xstate.c).
 */
bool tl_cpu_allow_tiles(void);

/* ---- libraries ---- */

/* Opens a shared library by its name or path; NULL if that fails. It is never closed. */
void *tl_library_open(const char *name);
/* The address of a function of a library, or NULL. */
void *tl_library_symbol(void *library, const char *name);

/* ---- random numbers ---- */

/* A key that nobody outside this process can guess. */
struct tl_hash_key tl_hash_new_key(void);

/* ---- clock ---- */

/* Nanoseconds since an arbitrary moment; never goes backwards. */
uint64_t tl_clock_ns(void);

/* ---- threads ---- */

/* Must not move between tl_thread_create and tl_thread_join. */
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

/* The new thread blocks all signals but SIGBUS, so that the existing threads handle them. */
int tl_thread_create(struct tl_thread *t, void (*run)(void *arg), void *arg, struct tl_error *err);
void tl_thread_join(struct tl_thread *t);
void tl_thread_yield(void);

void tl_mutex_init(struct tl_mutex *m);
void tl_mutex_destroy(struct tl_mutex *m);
void tl_mutex_lock(struct tl_mutex *m);
void tl_mutex_unlock(struct tl_mutex *m);

void tl_cond_init(struct tl_cond *c);
void tl_cond_destroy(struct tl_cond *c);
void tl_cond_wait(struct tl_cond *c, struct tl_mutex *m); // may wake spuriously
void tl_cond_signal(struct tl_cond *c);
void tl_cond_broadcast(struct tl_cond *c);

/* Differs in a forked child, where the parent's threads do not exist. */
uint64_t tl_process_id(void);

#endif
