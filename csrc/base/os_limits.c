/*
 * os_limits.c - how much memory and how many CPUs this process may use on Linux and macOS.
 *
 * On Linux that depends on what is free, on the control groups and on the affinity mask.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE // sched_getaffinity
#elif defined(__APPLE__)
#define _DARWIN_C_SOURCE
#endif

#include "base/os.h"

#ifndef _WIN32

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#ifdef __linux__

#include <sys/syscall.h>

#ifndef TL_OS_ROOT
#define TL_OS_ROOT "" // a test names a folder with its own /proc and /sys
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

/* The number after `key`, in the line of `text` that starts with it; false if there is none. */
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

/* CPUs that the quota allows, rounded up. */
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

/* Bytes left below the limit; file pages that the group can drop count as free. */
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

/* This process's group in the hierarchy that has `controller` ("" for the unified one). */
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

/* Where that hierarchy is mounted, and which of its groups is the root of the mount. */
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

/* The lowest limit of this process's group and of its parents up to the root of the mount. */
static uint64_t limit_of_groups(const char *controller, group_limit *limit, bool v2) {
    char group[4200], mount[4200], root[4200], dir[8500];
    const char *below = group;
    uint64_t best = UINT64_MAX;
    size_t top;
    if (!find_group(controller, group, sizeof(group)) ||
        !find_mount(controller, mount, root, sizeof(mount))) {
        return UINT64_MAX;
    }
    // in a container the mount may show only this group: then its root is the group's path
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

bool tl_cpu_has_dot_product(void) {
#if defined(__aarch64__) && defined(__linux__)
    return (getauxval(AT_HWCAP) & (1UL << 20)) != 0; // HWCAP_ASIMDDP of asm/hwcap.h
#elif defined(__aarch64__) && defined(__APPLE__)
    return true; // every Apple silicon that runs macOS
#else
    return false;
#endif
}

bool tl_cpu_allow_tiles(void) {
#if defined(__x86_64__) && defined(__linux__)
    const long request = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
    return false;
#endif
}

#endif
