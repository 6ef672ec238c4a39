/*
 * os_guard.c - the handler of SIGBUS, which the system sends to a thread that reads a page of a
 * mapped file beyond the end that the file has now.
 *
 * The handler puts zeros in the place of the pages and notes the loss. So every read goes on, on
 * any thread, and whoever started it asks for the loss afterwards. systemd does the same
 * (src/basic/sigbus.c).
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE // MAP_ANONYMOUS
#elif defined(__APPLE__)
#define _DARWIN_C_SOURCE
#endif

#include "base/os_guard.h"

#include "base/os.h"

#include <stdatomic.h>

static atomic_uint losses;

unsigned tl_file_losses(void) {
    return atomic_load(&losses);
}

bool tl_file_lost(const struct tl_file *file) {
    return tl_guard_lost(file->guard);
}

#ifdef _WIN32

struct tl_guard *tl_guard_add(const void *data, size_t size) {
    (void)data, (void)size;
    return NULL;
}

void tl_guard_remove(struct tl_guard *guard) {
    (void)guard;
}

bool tl_guard_lost(const struct tl_guard *guard) {
    (void)guard;
    return false;
}

#else

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Entries of a list that only grows, because the handler may walk over it at any time. A free
   entry has the start 0, one that is being filled in the start RESERVED and the end 0. There is no
   lock, which a child might inherit locked. */
struct tl_guard {
    _Atomic uintptr_t start, end;
    atomic_bool lost;
    struct tl_guard *next; // fixed once the entry is in the list
};

#define RESERVED 1

static _Atomic(struct tl_guard *) guards;
static _Atomic uintptr_t page;
static struct sigaction previous; // who handled the signal before
static atomic_flag passed_on = ATOMIC_FLAG_INIT, watching = ATOMIC_FLAG_INIT;

/* Puts zeros from the page of `address` to the end of its range; false if it is in no range. */
static bool give_zeros(uintptr_t address) {
    for (struct tl_guard *g = atomic_load(&guards); g != NULL; g = g->next) {
        const uintptr_t start = atomic_load(&g->start), end = atomic_load(&g->end);
        const uintptr_t from = address & ~(atomic_load(&page) - 1);
        if (start == 0 || address < start || address >= end) continue;
        atomic_store(&g->lost, true); // before any thread can read the zeros
        atomic_fetch_add(&losses, 1);
        return mmap((void *)from, end - from, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                    -1, 0) != MAP_FAILED;
    }
    return false;
}

/* Leaves a signal that is not about a mapped file to the handler before, or to the system. */
static void pass_on(int number, siginfo_t *info, void *context) {
    const struct sigaction by_default = {.sa_handler = SIG_DFL};
    const bool again = atomic_flag_test_and_set(&passed_on);
    if (!again && (previous.sa_flags & SA_SIGINFO) != 0) {
        previous.sa_sigaction(number, info, context);
    } else if (!again && previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(number);
    } else if (info->si_code > 0 || previous.sa_handler != SIG_IGN) {
        // the read fails again after this handler, and ends the process; a sent signal is repeated
        sigaction(number, &by_default, NULL);
        if (info->si_code <= 0) raise(number);
    }
    atomic_flag_clear(&passed_on);
}

static void on_sigbus(int number, siginfo_t *info, void *context) {
    const int before = errno;
    // a positive code: the system reports a failed read; otherwise a process sent the signal
    if (info->si_code <= 0 || !give_zeros((uintptr_t)info->si_addr)) {
        pass_on(number, info, context);
    }
    errno = before;
}

/* Sets the handler, again if somebody has set another one since. */
static void watch(void) {
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct sigaction now;
    if (atomic_flag_test_and_set(&watching)) return; // another thread is just doing it
    if (sigaction(SIGBUS, NULL, &now) == 0 &&
        ((now.sa_flags & SA_SIGINFO) == 0 || now.sa_sigaction != on_sigbus)) {
        previous = now;
        sigemptyset(&action.sa_mask);
        sigaction(SIGBUS, &action, NULL);
    }
    atomic_flag_clear(&watching);
}

/* An entry that nobody else uses; NULL without memory. */
static struct tl_guard *reserve(void) {
    struct tl_guard *g;
    for (g = atomic_load(&guards); g != NULL; g = g->next) {
        uintptr_t start = 0;
        if (atomic_compare_exchange_strong(&g->start, &start, RESERVED)) return g;
    }
    g = calloc(1, sizeof(*g));
    if (g == NULL) return NULL;
    atomic_store(&g->start, RESERVED);
    g->next = atomic_load(&guards);
    while (!atomic_compare_exchange_weak(&guards, &g->next, g)) {
    }
    return g;
}

struct tl_guard *tl_guard_add(const void *data, size_t size) {
    const uintptr_t unit = tl_page_size();
    struct tl_guard *g = reserve();
    if (g == NULL) return NULL;
    atomic_store(&page, unit);
    watch();
    atomic_store(&g->lost, false);
    atomic_store(&g->start, (uintptr_t)data);
    atomic_store(&g->end, ((uintptr_t)data + size + unit - 1) & ~(unit - 1));
    return g;
}

void tl_guard_remove(struct tl_guard *guard) {
    if (guard == NULL) return;
    atomic_store(&guard->end, 0);
    atomic_store(&guard->start, 0);
}

bool tl_guard_lost(const struct tl_guard *guard) {
    return guard != NULL && atomic_load(&guard->lost);
}

#endif
