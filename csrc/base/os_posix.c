/* os_posix.c - files, memory, clock and threads of Linux and macOS. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE // madvise, O_CLOEXEC
#elif defined(__APPLE__)
#define _DARWIN_C_SOURCE
#endif

#include "base/os.h"
#include "base/os_guard.h"

#ifndef _WIN32

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const uint8_t no_bytes[1];

/* ---- files ---- */

#define HUGE_PAGE ((size_t)2 << 20)

static int fail_errno(struct tl_error *err, int code) {
    // OSError shows errno and text like this one: "[Errno 2] No such file or directory: 'x'"
    tl_fail(err, TL_EIO, "%s", strerror(code));
    err->sys_errno = code;
    return TL_EIO;
}

static int read_whole(int fd, struct tl_file *file, struct tl_error *err) {
    uint8_t *data = file->size >= 4 * HUGE_PAGE ? tl_alloc_huge(file->size) : tl_alloc(file->size);
    if (data == NULL) return tl_fail(err, TL_ENOMEM, "no memory for %zu bytes", file->size);
    for (size_t done = 0; done < file->size;) {
        ssize_t got = read(fd, data + done, TL_MIN(file->size - done, (size_t)1 << 30));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            int code = got < 0 ? errno : EIO; // 0: the file was truncated meanwhile
            tl_free(data);
            return fail_errno(err, code);
        }
        done += (size_t)got;
    }
    file->data = data;
    return TL_OK;
}

/* Reserves addresses for a mapping that begins where a huge page can; NULL if that fails. */
static void *huge_room(size_t bytes) {
    size_t room;
    uint8_t *from, *start;
    if (!tl_add_size(bytes, HUGE_PAGE, &room)) return NULL;
    from = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (from == MAP_FAILED) return NULL;
    start = from + (HUGE_PAGE - (uintptr_t)from % HUGE_PAGE) % HUGE_PAGE;
    if (start > from) munmap(from, (size_t)(start - from));
    munmap(start + bytes, room - bytes - (size_t)(start - from));
    return start;
}

/*
 * A large file is mapped where huge pages are possible, and huge pages are requested for it. Where
 * the system grants them, reading is about 1.5 times as fast, and mapping takes a tenth of the
 * time.
 */
static int map_whole(int fd, struct tl_file *file, struct tl_error *err) {
    const size_t page = tl_page_size(), bytes = (file->size + page - 1) / page * page;
    void *room = file->size >= 4 * HUGE_PAGE ? huge_room(bytes) : NULL;
    void *data =
        mmap(room, file->size, PROT_READ, MAP_SHARED | (room != NULL ? MAP_FIXED : 0), fd, 0);
    if (data == MAP_FAILED) {
        const int code = errno;
        if (room != NULL) munmap(room, bytes);
        return fail_errno(err, code);
    }
#ifdef MADV_HUGEPAGE
    if (room != NULL) (void)madvise(data, file->size, MADV_HUGEPAGE);
#endif
    file->guard = tl_guard_add(data, file->size);
    if (file->guard == NULL) {
        munmap(data, file->size);
        return tl_fail(err, TL_ENOMEM, "no memory to map the file");
    }
    file->data = data;
    file->mapped = true;
    return TL_OK;
}

int tl_file_open(struct tl_file *file, const char *path, bool mapped, struct tl_error *err) {
    struct stat st;
    int fd, status;
    *file = (struct tl_file){.data = no_bytes};
    // O_NONBLOCK: does not hang on a pipe without a writer; has no effect on regular files
    do fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    while (fd < 0 && errno == EINTR);
    if (fd < 0) return fail_errno(err, errno);
    if (fstat(fd, &st) != 0) {
        status = fail_errno(err, errno);
    } else if (!S_ISREG(st.st_mode)) {
        status = fail_errno(err, S_ISDIR(st.st_mode) ? EISDIR : ESPIPE);
    } else if (st.st_size < 0 || (uint64_t)st.st_size > SIZE_MAX / 2) {
        status = fail_errno(err, EFBIG);
    } else {
        file->size = (size_t)st.st_size;
        status = file->size == 0 ? TL_OK
                 : mapped        ? map_whole(fd, file, err)
                                 : read_whole(fd, file, err);
    }
    close(fd);
    if (status != TL_OK) file->size = 0;
    return status;
}

void tl_file_close(struct tl_file *file) {
    if (file->mapped) {
        tl_guard_remove(file->guard);
        munmap((void *)file->data, file->size);
    } else if (file->data != no_bytes) {
        tl_free((void *)file->data);
    }
    *file = (struct tl_file){.data = no_bytes};
}

void tl_file_forget(const struct tl_file *file, const uint8_t *data, size_t bytes) {
#ifdef MADV_DONTNEED
    const size_t before = (size_t)(data - file->data) % tl_page_size(); // a mapping starts a page
    if (file->mapped) (void)madvise((void *)(data - before), bytes + before, MADV_DONTNEED);
#else
    (void)file;
    (void)data;
    (void)bytes;
#endif
}

size_t tl_page_size(void) {
    long size = sysconf(_SC_PAGESIZE);
    return size > 0 ? (size_t)size : 4096;
}

void *tl_alloc_huge(size_t bytes) {
    void *p;
    if (!tl_add_size(bytes, HUGE_PAGE - 1, &bytes)) return NULL;
    bytes &= ~(HUGE_PAGE - 1);
    p = aligned_alloc(HUGE_PAGE, bytes);
#ifdef MADV_HUGEPAGE
    if (p != NULL) (void)madvise(p, bytes, MADV_HUGEPAGE); // a hint, which may fail
#endif
    return p;
}

struct tl_hash_key tl_hash_new_key(void) {
    struct tl_hash_key key = {0};
    if (getentropy(&key, sizeof(key)) != 0) { // an old kernel: the clock and addresses are random
        key.a = tl_clock_ns() * 0x9E3779B97F4A7C15u;
        key.b = (uint64_t)(uintptr_t)&key ^ key.a << 17;
    }
    return key;
}

uint64_t tl_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t tl_process_id(void) {
    return (uint64_t)getpid();
}

/* ---- threads ---- */

#define STACK_BYTES ((size_t)1 << 20) // some systems give a new thread no more than 128 KiB

static void *thread_main(void *arg) {
    struct tl_thread *t = arg;
    t->run(t->arg);
    return NULL;
}

int tl_thread_create(struct tl_thread *t, void (*run)(void *arg), void *arg, struct tl_error *err) {
    sigset_t all, before;
    pthread_attr_t attributes;
    int code = pthread_attr_init(&attributes);
    if (code != 0) return fail_errno(err, code);
    t->run = run;
    t->arg = arg;
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all);
    sigdelset(&all, SIGBUS); // see os_guard.c; blocked, it would end the process
    pthread_sigmask(SIG_SETMASK, &all, &before); // a new thread inherits this mask
    code = pthread_create(&t->handle, &attributes, thread_main, t);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return code == 0 ? TL_OK : fail_errno(err, code);
}

void tl_thread_join(struct tl_thread *t) {
    pthread_join(t->handle, NULL);
}

void tl_thread_yield(void) {
    sched_yield();
}

void *tl_library_open(const char *name) {
    return dlopen(name, RTLD_NOW | RTLD_LOCAL);
}

void *tl_library_symbol(void *library, const char *name) {
    return dlsym(library, name);
}

void tl_mutex_init(struct tl_mutex *m) {
    pthread_mutex_init(&m->lock, NULL);
}

void tl_mutex_destroy(struct tl_mutex *m) {
    pthread_mutex_destroy(&m->lock);
}

void tl_mutex_lock(struct tl_mutex *m) {
    pthread_mutex_lock(&m->lock);
}

void tl_mutex_unlock(struct tl_mutex *m) {
    pthread_mutex_unlock(&m->lock);
}

void tl_cond_init(struct tl_cond *c) {
    pthread_cond_init(&c->cond, NULL);
}

void tl_cond_destroy(struct tl_cond *c) {
    pthread_cond_destroy(&c->cond);
}

void tl_cond_wait(struct tl_cond *c, struct tl_mutex *m) {
    pthread_cond_wait(&c->cond, &m->lock);
}

void tl_cond_signal(struct tl_cond *c) {
    pthread_cond_signal(&c->cond);
}

void tl_cond_broadcast(struct tl_cond *c) {
    pthread_cond_broadcast(&c->cond);
}

#endif
