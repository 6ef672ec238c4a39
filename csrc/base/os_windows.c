/* os_windows.c - files, memory, CPUs, clock and threads of Windows. */
#define _CRT_RAND_S
#include "base/os.h"

#ifdef _WIN32

/* Written from the documentation, never run. */

#include <errno.h>
#include <process.h>
#include <stdlib.h>

static const uint8_t no_bytes[1];

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
    CloseHandle(mapping); // the view keeps the mapping alive
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
        status = fail_windows(err, "cannot get the size of the file");
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

void tl_file_close(struct tl_file *file) {
    if (file->mapped) {
        UnmapViewOfFile(file->data);
    } else if (file->data != no_bytes) {
        tl_free((void *)file->data);
    }
    *file = (struct tl_file){.data = no_bytes};
}

void tl_file_forget(const struct tl_file *file, const uint8_t *data, size_t bytes) {
    (void)file;
    (void)data;
    (void)bytes;
}

struct tl_hash_key tl_hash_new_key(void) {
    unsigned parts[4] = {0};
    for (int i = 0; i < 4; i++) rand_s(&parts[i]);
    return (struct tl_hash_key){(uint64_t)parts[0] << 32 | parts[1],
                                (uint64_t)parts[2] << 32 | parts[3]};
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

bool tl_cpu_has_dot_product(void) {
    return false; // there is no build for ARM
}

bool tl_cpu_allow_tiles(void) {
    return false; // not tried
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

void *tl_library_open(const char *name) {
    return (void *)LoadLibraryA(name);
}

void *tl_library_symbol(void *library, const char *name) {
    return (void *)GetProcAddress((HMODULE)library, name);
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

#endif
