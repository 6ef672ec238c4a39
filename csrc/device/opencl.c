/* opencl.c - opens the OpenCL library by its name. */
#include "device/opencl.h"

#include "base/os.h"

#include <stdatomic.h>
#include <stdlib.h>

static struct tl_opencl table;
static bool opened; // the table is complete; it is never changed afterwards
static atomic_flag taken = ATOMIC_FLAG_INIT;

static const char *const names[] = {
#if defined(_WIN32)
    "OpenCL.dll",
#elif defined(__APPLE__)
    "/System/Library/Frameworks/OpenCL.framework/OpenCL",
#else
    "libOpenCL.so.1",
    "libOpenCL.so",
#endif
};

static int find_calls(void *library, const char *name, struct tl_error *err) {
#define FIND(call, result, parameters)                                                             \
    *(void **)(void *)&table.call = tl_library_symbol(library, #call);                             \
    if (table.call == NULL) {                                                                      \
        return tl_fail(err, TL_ENOSUP, "%s lacks %s; expected a library of OpenCL 1.2", name,      \
                       #call);                                                                     \
    }
    TL_CL_CALLS(FIND)
#undef FIND
    opened = true;
    return TL_OK;
}

static int open_library(struct tl_error *err) {
    const char *chosen = getenv("TINYLLM_OPENCL");
    if (opened) return TL_OK;
    if (chosen != NULL && chosen[0] != 0) {
        void *library = tl_library_open(chosen);
        if (library != NULL) return find_calls(library, chosen, err);
        return tl_fail(err, TL_ENOSUP, "TINYLLM_OPENCL names '%.300s', which cannot be opened",
                       chosen);
    }
    for (size_t i = 0; i < TL_ARRAY_LEN(names); i++) {
        void *library = tl_library_open(names[i]);
        if (library != NULL) return find_calls(library, names[i], err);
    }
    return tl_fail(err, TL_ENOSUP,
                   "the OpenCL library %s was not found; it comes with the driver of a GPU, or "
                   "with the package ocl-icd-libopencl1 on Debian and Ubuntu",
                   names[0]);
}

int tl_opencl_open(const struct tl_opencl **out, struct tl_error *err) {
    int status;
    while (atomic_flag_test_and_set(&taken)) tl_thread_yield();
    status = open_library(err);
    atomic_flag_clear(&taken);
    *out = &table;
    return status;
}

const char *tl_opencl_status(int status) {
    static const struct {
        int status;
        const char *name;
    } table_of[] = {
        {-1, "CL_DEVICE_NOT_FOUND"},         {-2, "CL_DEVICE_NOT_AVAILABLE"},
        {-3, "CL_COMPILER_NOT_AVAILABLE"},   {-4, "CL_MEM_OBJECT_ALLOCATION_FAILURE"},
        {-5, "CL_OUT_OF_RESOURCES"},         {-6, "CL_OUT_OF_HOST_MEMORY"},
        {-11, "CL_BUILD_PROGRAM_FAILURE"},   {-14, "CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST"},
        {-30, "CL_INVALID_VALUE"},           {-36, "CL_INVALID_COMMAND_QUEUE"},
        {-38, "CL_INVALID_MEM_OBJECT"},      {-46, "CL_INVALID_KERNEL_NAME"},
        {-51, "CL_INVALID_ARG_SIZE"},        {-52, "CL_INVALID_KERNEL_ARGS"},
        {-54, "CL_INVALID_WORK_GROUP_SIZE"}, {-59, "CL_INVALID_OPERATION"},
        {-61, "CL_INVALID_BUFFER_SIZE"},     {-1001, "CL_PLATFORM_NOT_FOUND_KHR"},
    };
    for (size_t i = 0; i < TL_ARRAY_LEN(table_of); i++) {
        if (table_of[i].status == status) return table_of[i].name;
    }
    return "an OpenCL error";
}
