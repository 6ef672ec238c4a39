/* os.c - files, memory, CPUs, clock and threads on Linux, macOS and Windows. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE // sched_getaffinity
#elif defined(__APPLE__)
#define _DARWIN_C_SOURCE
#endif

#include "base/os.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

static const uint8_t no_bytes[1];

#ifdef _WIN32

#include <process.h>

/* ---- Windows: written from the documentation, not run ---- */

static int fail_windows(struct tl_error *err, const char *what) {
    DWORD code = GetLastError();
    tl_fail(err, TL_EIO, "%s (Windows error %lu)", what, (unsigned long)code);
    err->sys_errno = code == ERROR_FILE_NOT_FOUND || code == ERROR_PATH_NOT_FOUND ? ENOENT
                     : code == ERROR_ACCESS_DENIED                                ? EACCES
                     : code == ERROR_NOT_ENOUGH_MEMORY                            ? ENOMEM
                                                                                  : EIO;
    return TL_EIO;
}

static int read_whole(HANDLE handle, struct tl_file *file, struct tl_error *err) {
    uint8_t *data = tl_alloc(file->size);
    if (data == NULL) return tl_fail(err, TL_ENOMEM, "no memory for %zu bytes", file->size);
    for (size_t done = 0; done < file->size;) {
        DWORD got, want = (DWORD)TL_MIN(file->size - done, (size_t)1 << 30);
        if (!ReadFile(handle, data + done, want, &got, NULL) || got == 0) {
            tl_free(data);
            return fail_windows(err, "cannot read the file");
        }
        done += got;
    }
    file->data = data;
    return TL_OK;
}

static int map_whole(HANDLE handle, struct tl_file *file, struct tl_error *err) {
    HANDLE mapping = CreateFileMappingW(handle, NULL, PAGE_READONLY, 0, 0, NULL);
    if (mapping == NULL) return fail_windows(err, "cannot map the file");
    file->data = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
    CloseHandle(mapping); // the view keeps it
    if (file->data == NULL) return fail_windows(err, "cannot map the file");
    file->mapped = true;
    return TL_OK;
}

int tl_file_open(struct tl_file *file, const char *path, bool mapped, struct tl_error *err) {
    LARGE_INTEGER size;
    HANDLE handle;
    int status, units = MultiByteToWideChar(CP_UTF8, 0, path, -1, NULL, 0);
    wchar_t *wide = units > 0 ? malloc((size_t)units * sizeof(*wide)) : NULL;
    *file = (struct tl_file){.data = no_bytes};
    if (wide == NULL) return tl_fail(err, TL_ENOMEM, "no memory for the path");
    MultiByteToWideChar(CP_UTF8, 0, path, -1, wide, units);
    handle = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, NULL,
                         OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, NULL);
    free(wide);
    if (handle == INVALID_HANDLE_VALUE) return fail_windows(err, "cannot open the file");
    if (!GetFileSizeEx(handle, &size)) {
        status = fail_windows(err, "cannot tell the size of the file");
    } else if ((uint64_t)size.QuadPart > SIZE_MAX / 2) {
        status = tl_fail(err, TL_ENOMEM, "the file is larger than the address space");
    } else {
        file->size = (size_t)size.QuadPart;
        status = file->size == 0 ? TL_OK
                 : mapped        ? map_whole(handle, file, err)
                                 : read_whole(handle, file, err);
    }
    CloseHandle(handle);
    if (status != TL_OK) file->size = 0;
    return status;
}

static void unmap(struct tl_file *file) {
    UnmapViewOfFile(file->data);
}

size_t tl_page_size(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
}

void *tl_alloc_huge(size_t bytes) {
    return tl_alloc(bytes);
}

uint64_t tl_memory_available(void) {
    MEMORYSTATUSEX status = {.dwLength = sizeof(status)};
    return GlobalMemoryStatusEx(&status) ? TL_MIN(status.ullAvailPhys, status.ullAvailPageFile)
                                         : UINT64_MAX;
}

int tl_cpu_count(bool cores) {
    SYSTEM_INFO info;
    (void)cores;
    GetSystemInfo(&info);
    return TL_MAX((int)info.dwNumberOfProcessors, 1);
}

uint64_t tl_clock_ns(void) {
    LARGE_INTEGER now, frequency;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&frequency);
    return (uint64_t)((double)now.QuadPart / (double)frequency.QuadPart * 1e9);
}

static unsigned __stdcall thread_main(void *arg) {
    struct tl_thread *t = arg;
    t->run(t->arg);
    return 0;
}

int tl_thread_create(struct tl_thread *t, void (*run)(void *arg), void *arg, struct tl_error *err) {
    t->run = run;
    t->arg = arg;
    t->handle = (HANDLE)_beginthreadex(NULL, 0, thread_main, t, 0, NULL);
    if (t->handle == NULL) return fail_windows(err, "cannot start a thread");
    return TL_OK;
}

void tl_thread_join(struct tl_thread *t) {
    WaitForSingleObject(t->handle, INFINITE);
    CloseHandle(t->handle);
}

void tl_thread_yield(void) {
    SwitchToThread();
}

void tl_mutex_init(struct tl_mutex *m) {
    InitializeSRWLock(&m->lock);
}

void tl_mutex_destroy(struct tl_mutex *m) {
    (void)m;
}

void tl_mutex_lock(struct tl_mutex *m) {
    AcquireSRWLockExclusive(&m->lock);
}

void tl_mutex_unlock(struct tl_mutex *m) {
    ReleaseSRWLockExclusive(&m->lock);
}

void tl_cond_init(struct tl_cond *c) {
    InitializeConditionVariable(&c->cond);
}

void tl_cond_destroy(struct tl_cond *c) {
    (void)c;
}

void tl_cond_wait(struct tl_cond *c, struct tl_mutex *m) {
    SleepConditionVariableSRW(&c->cond, &m->lock, INFINITE, 0);
}

void tl_cond_signal(struct tl_cond *c) {
    WakeConditionVariable(&c->cond);
}

void tl_cond_broadcast(struct tl_cond *c) {
    WakeAllConditionVariable(&c->cond);
}

uint64_t tl_process_id(void) {
    return GetCurrentProcessId();
}

#else

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- POSIX: files ---- */

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
            int code = got < 0 ? errno : EIO; // 0: the file became shorter under our hands
            tl_free(data);
            return fail_errno(err, code);
        }
        done += (size_t)got;
    }
    file->data = data;
    return TL_OK;
}

/* Room for a mapping that begins where a huge page may; NULL if there is none. */
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
 * Large files are mapped so that the system may use huge pages, and are asked to be read in such:
 * where it does, memory is read about half as fast again, and mapping takes a tenth of the time.
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
    file->data = data;
    file->mapped = true;
    return TL_OK;
}

int tl_file_open(struct tl_file *file, const char *path, bool mapped, struct tl_error *err) {
    struct stat st;
    int fd, status;
    *file = (struct tl_file){.data = no_bytes};
    // not to hang on a pipe that nobody writes; has no effect on regular files
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

static void unmap(struct tl_file *file) {
    munmap((void *)file->data, file->size);
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
    if (p != NULL) (void)madvise(p, bytes, MADV_HUGEPAGE); // a wish; no harm if it is not granted
#endif
    return p;
}

uint64_t tl_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t tl_process_id(void) {
    return (uint64_t)getpid();
}

/* ---- POSIX: threads ---- */

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
    pthread_sigmask(SIG_SETMASK, &all, &before); // a thread starts with its maker's mask
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

/* ---- CPUs and memory ---- */

#ifdef __linux__

#ifndef TL_OS_ROOT
#define TL_OS_ROOT "" // a test puts a /proc and /sys of its own here
#endif

/* The start of a small text file, terminated; false when it cannot be read. */
static bool read_text(const char *path, char *text, size_t size) {
    FILE *f = fopen(path, "re");
    size_t n;
    if (f == NULL) return false;
    n = fread(text, 1, size - 1, f);
    text[n] = 0;
    fclose(f);
    return n > 0;
}

/* What follows `key` at the start of a line of `text`, as a number. */
static bool find_number(const char *text, const char *key, uint64_t *out) {
    size_t n = strlen(key);
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, n) == 0) {
            *out = strtoull(line + n, NULL, 10);
            return true;
        }
    }
    return false;
}

/* True if `word` is one of the comma-separated words of `list`. */
static bool has_word(const char *list, const char *word) {
    size_t n = strlen(word);
    for (;;) {
        if (strncmp(list, word, n) == 0 && (list[n] == ',' || list[n] == 0)) return true;
        list = strchr(list, ',');
        if (list == NULL) return false;
        list++;
    }
}

/* The limit that one control group sets; UINT64_MAX for none. `v2` is the unified hierarchy. */
typedef uint64_t group_limit(const char *dir, bool v2);

static uint64_t group_number(const char *dir, const char *name) {
    char path[4400], text[64], *end;
    uint64_t value;
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    if (!read_text(path, text, sizeof(text)) || text[0] < '0' || text[0] > '9') return UINT64_MAX;
    value = strtoull(text, &end, 10);
    return value > INT64_MAX ? UINT64_MAX : value; // v1 writes a huge number for "no limit"
}

/* CPUs that the quota pays for, rounded up. */
static uint64_t limit_cpu(const char *dir, bool v2) {
    uint64_t quota, period;
    if (v2) {
        char path[4400], text[64], *end;
        snprintf(path, sizeof(path), "%s/cpu.max", dir);
        if (!read_text(path, text, sizeof(text)) || text[0] < '0' || text[0] > '9') {
            return UINT64_MAX; // "max 100000"
        }
        quota = strtoull(text, &end, 10);
        period = strtoull(end, NULL, 10);
    } else {
        quota = group_number(dir, "cpu.cfs_quota_us"); // -1 for none
        period = group_number(dir, "cpu.cfs_period_us");
        if (quota == UINT64_MAX) return UINT64_MAX;
    }
    if (period == 0 || quota == 0 || period == UINT64_MAX) return UINT64_MAX;
    return quota / period + (quota % period != 0);
}

/* Bytes below the limit; file pages that the group can drop count as free. */
static uint64_t limit_memory(const char *dir, bool v2) {
    char path[4400], text[4096];
    uint64_t limit = group_number(dir, v2 ? "memory.max" : "memory.limit_in_bytes");
    uint64_t used = group_number(dir, v2 ? "memory.current" : "memory.usage_in_bytes");
    uint64_t cache = 0;
    if (limit == UINT64_MAX || used == UINT64_MAX) return UINT64_MAX;
    snprintf(path, sizeof(path), "%s/memory.stat", dir);
    if (read_text(path, text, sizeof(text))) {
        find_number(text, v2 ? "inactive_file " : "total_inactive_file ", &cache);
    }
    used -= TL_MIN(used, cache);
    return limit - TL_MIN(limit, used);
}

/* Our group in the hierarchy that has `controller` ("" for the unified one). */
static bool find_group(const char *controller, char *group, size_t size) {
    char line[4200];
    bool found = false;
    FILE *f = fopen(TL_OS_ROOT "/proc/self/cgroup", "re");
    if (f == NULL) return false;
    while (!found && fgets(line, sizeof(line), f) != NULL) { // "4:cpu,cpuacct:/a/b"
        char *list = strchr(line, ':'), *path = list != NULL ? strchr(list + 1, ':') : NULL;
        if (path == NULL) continue;
        *path = 0;
        path[1 + strcspn(path + 1, "\n")] = 0;
        found = controller[0] != 0 ? has_word(list + 1, controller) : list[1] == 0;
        if (found) snprintf(group, size, "%s", path + 1);
    }
    fclose(f);
    return found;
}

/* Where that hierarchy is mounted, and which of its groups is the root there. */
static bool find_mount(const char *controller, char *mount, char *root, size_t size) {
    char line[8192];
    bool found = false;
    FILE *f = fopen(TL_OS_ROOT "/proc/self/mountinfo", "re");
    if (f == NULL) return false;
    // "36 35 98:0 /root /mount rw,noatime master:1 - cgroup source rw,cpu"
    while (!found && fgets(line, sizeof(line), f) != NULL) {
        char from[4096], to[4096], kind[64], options[4096];
        const char *rest = strstr(line, " - ");
        if (rest == NULL || sscanf(line, "%*s %*s %*s %4095s %4095s", from, to) != 2 ||
            sscanf(rest, " - %63s %*s %4095s", kind, options) != 2) {
            continue;
        }
        found = controller[0] != 0 ? strcmp(kind, "cgroup") == 0 && has_word(options, controller)
                                   : strcmp(kind, "cgroup2") == 0;
        if (found) {
            snprintf(mount, size, "%s%s", TL_OS_ROOT, to);
            snprintf(root, size, "%s", from);
        }
    }
    fclose(f);
    return found;
}

/* The tightest limit on the way from our group up to the root of its mount. */
static uint64_t limit_of_groups(const char *controller, group_limit *limit, bool v2) {
    char group[4200], mount[4200], root[4200], dir[8500];
    const char *below = group;
    uint64_t best = UINT64_MAX;
    size_t top;
    if (!find_group(controller, group, sizeof(group)) ||
        !find_mount(controller, mount, root, sizeof(mount))) {
        return UINT64_MAX;
    }
    // in a container the mount may show our group alone: its root is the path that we have
    if (strcmp(root, "/") != 0 && strncmp(group, root, strlen(root)) == 0) below += strlen(root);
    top = strlen(mount);
    snprintf(dir, sizeof(dir), "%s%s", mount, below);
    for (;;) {
        uint64_t here = limit(dir, v2);
        char *slash;
        best = TL_MIN(best, here);
        if (strlen(dir) <= top) return best;
        slash = strrchr(dir, '/');
        if (slash == NULL) return best;
        *slash = 0;
    }
}

static uint64_t group_limits(const char *controller, group_limit *limit) {
    uint64_t v1 = limit_of_groups(controller, limit, false);
    uint64_t v2 = limit_of_groups("", limit, true);
    return TL_MIN(v1, v2);
}

uint64_t tl_memory_available(void) {
    char text[4096];
    uint64_t kib, available = UINT64_MAX, limit = group_limits("memory", limit_memory);
    if (read_text(TL_OS_ROOT "/proc/meminfo", text, sizeof(text)) &&
        find_number(text, "MemAvailable:", &kib)) {
        available = kib * 1024;
    }
    return TL_MIN(available, limit);
}

/* True if `cpu` is the first of the hardware threads of its core that are in the set. */
static bool first_of_core(int cpu, const cpu_set_t *set, size_t set_bytes) {
    char path[160], text[512], *p = text;
    snprintf(path, sizeof(path),
             TL_OS_ROOT "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    if (!read_text(path, text, sizeof(text))) return true;
    while (*p >= '0' && *p <= '9') { // "0,4" or "0-1"
        long first = strtol(p, &p, 10), last = first;
        if (*p == '-') last = strtol(p + 1, &p, 10);
        for (long sibling = first; sibling <= last && sibling < cpu; sibling++) {
            if (CPU_ISSET_S((size_t)sibling, set_bytes, set)) return false;
        }
        p += *p == ',';
    }
    return true;
}

static int count_affinity(bool cores) {
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    // the kernel refuses a set that is smaller than its own
    for (int n = 1024; n <= 1 << 20; n *= 2) {
        size_t bytes = CPU_ALLOC_SIZE((size_t)n);
        cpu_set_t *set = CPU_ALLOC((size_t)n);
        int count = 0;
        if (set == NULL) break;
        CPU_ZERO_S(bytes, set);
        if (sched_getaffinity(0, bytes, set) == 0) {
            for (int cpu = 0; cpu < n; cpu++) {
                if (!CPU_ISSET_S((size_t)cpu, bytes, set)) continue;
                count += !cores || first_of_core(cpu, set, bytes);
            }
            CPU_FREE(set);
            return count;
        }
        CPU_FREE(set);
        if (errno != EINVAL) break;
    }
    return online > 0 ? (int)online : 1;
}

int tl_cpu_count(bool cores) {
    uint64_t count = (uint64_t)TL_MAX(count_affinity(cores), 1);
    return (int)TL_MIN(count, group_limits("cpu", limit_cpu));
}

#elif defined(__APPLE__)

#include <mach/mach.h>
#include <sys/sysctl.h>

uint64_t tl_memory_available(void) {
    vm_statistics64_data_t vm;
    mach_msg_type_number_t n = HOST_VM_INFO64_COUNT;
    if (host_statistics64(mach_host_self(), HOST_VM_INFO64, (host_info64_t)&vm, &n) != 0) {
        return UINT64_MAX;
    }
    return ((uint64_t)vm.free_count + vm.inactive_count) * tl_page_size();
}

int tl_cpu_count(bool cores) {
    int count = 0;
    size_t size = sizeof(count);
    const char *name = cores ? "hw.physicalcpu" : "hw.logicalcpu";
    if (sysctlbyname(name, &count, &size, NULL, 0) != 0) return 1;
    return TL_MAX(count, 1);
}

#else

uint64_t tl_memory_available(void) {
    return UINT64_MAX;
}

int tl_cpu_count(bool cores) {
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    (void)cores;
    return online > 0 ? (int)online : 1;
}

#endif
#endif

void tl_file_close(struct tl_file *file) {
    if (file->mapped) {
        unmap(file);
    } else if (file->data != no_bytes) {
        tl_free((void *)file->data);
    }
    *file = (struct tl_file){.data = no_bytes};
}

bool tl_cpu_has_dot_product(void) {
#if defined(__aarch64__) && defined(__linux__)
    return (getauxval(AT_HWCAP) & (1UL << 20)) != 0; // HWCAP_ASIMDDP of asm/hwcap.h
#elif defined(__aarch64__) && defined(__APPLE__)
    return true; // every Apple silicon that runs macOS
#else
    return false;
#endif
}
