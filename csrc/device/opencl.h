/*
 * opencl.h - the calls of OpenCL 1.2 that the core needs, found at run time.
 *
 * Nothing of OpenCL is needed to build or to link tinyllm: the library is opened by its name when
 * a device is asked for first. The declarations follow the specification (The OpenCL
 * Specification 1.2, Khronos 2012), in which handles are opaque pointers.
 */
#ifndef TL_OPENCL_H
#define TL_OPENCL_H

#include "base/base.h"

#ifdef _WIN32
#define TL_CL_API __stdcall
#else
#define TL_CL_API
#endif

enum {
    CL_DEVICE_NOT_AVAILABLE = -2,
    CL_MEM_OBJECT_ALLOCATION_FAILURE = -4,
    CL_OUT_OF_RESOURCES = -5,
    CL_OUT_OF_HOST_MEMORY = -6,
    CL_INVALID_BUFFER_SIZE = -61,
    CL_PLATFORM_NOT_FOUND_KHR = -1001,

    CL_DEVICE_TYPE_GPU = 4,
    CL_DEVICE_TYPE_ACCELERATOR = 8,
    CL_DEVICE_TYPE = 0x1000,
    CL_DEVICE_MAX_WORK_GROUP_SIZE = 0x1004,
    CL_DEVICE_MAX_MEM_ALLOC_SIZE = 0x1010,
    CL_DEVICE_SINGLE_FP_CONFIG = 0x101B,
    CL_DEVICE_GLOBAL_MEM_SIZE = 0x101F,
    CL_DEVICE_LOCAL_MEM_SIZE = 0x1023,
    CL_DEVICE_ENDIAN_LITTLE = 0x1026,
    CL_DEVICE_AVAILABLE = 0x1027,
    CL_DEVICE_COMPILER_AVAILABLE = 0x1028,
    CL_DEVICE_NAME = 0x102B,
    CL_DRIVER_VERSION = 0x102D,
    CL_DEVICE_VERSION = 0x102F,
    CL_DEVICE_EXTENSIONS = 0x1030,
    CL_DEVICE_INTEGER_DOT_PRODUCT_CAPABILITIES_KHR = 0x1073,
    CL_PROGRAM_BINARY_SIZES = 0x1165,
    CL_PROGRAM_BINARIES = 0x1166,
    CL_PROGRAM_BUILD_LOG = 0x1183,
    CL_MEM_READ_WRITE = 1,
};

/* Bits of CL_DEVICE_SINGLE_FP_CONFIG. */
enum { CL_FP_DENORM = 1, CL_FP_FMA = 32, CL_FP_CORRECTLY_ROUNDED_DIVIDE_SQRT = 128 };

/* A bit of CL_DEVICE_INTEGER_DOT_PRODUCT_CAPABILITIES_KHR. */
enum { CL_DEVICE_INTEGER_DOT_PRODUCT_INPUT_4x8BIT_PACKED_KHR = 1 };

typedef void *cl_handle;

/* name, result, parameters */
#define TL_CL_CALLS(X)                                                                             \
    X(clGetPlatformIDs, int32_t, (uint32_t, cl_handle *, uint32_t *))                              \
    X(clGetDeviceIDs, int32_t, (cl_handle, uint64_t, uint32_t, cl_handle *, uint32_t *))           \
    X(clGetDeviceInfo, int32_t, (cl_handle, uint32_t, size_t, void *, size_t *))                   \
    X(clCreateContext, cl_handle,                                                                  \
      (const intptr_t *, uint32_t, const cl_handle *, void *, void *, int32_t *))                  \
    X(clReleaseContext, int32_t, (cl_handle))                                                      \
    X(clCreateCommandQueue, cl_handle, (cl_handle, cl_handle, uint64_t, int32_t *))                \
    X(clReleaseCommandQueue, int32_t, (cl_handle))                                                 \
    X(clCreateProgramWithSource, cl_handle,                                                        \
      (cl_handle, uint32_t, const char **, const size_t *, int32_t *))                             \
    X(clCreateProgramWithBinary, cl_handle,                                                        \
      (cl_handle, uint32_t, const cl_handle *, const size_t *, const uint8_t **, int32_t *,        \
       int32_t *))                                                                                 \
    X(clBuildProgram, int32_t,                                                                     \
      (cl_handle, uint32_t, const cl_handle *, const char *, void *, void *))                      \
    X(clGetProgramBuildInfo, int32_t, (cl_handle, cl_handle, uint32_t, size_t, void *, size_t *))  \
    X(clGetProgramInfo, int32_t, (cl_handle, uint32_t, size_t, void *, size_t *))                  \
    X(clReleaseProgram, int32_t, (cl_handle))                                                      \
    X(clCreateKernel, cl_handle, (cl_handle, const char *, int32_t *))                             \
    X(clReleaseKernel, int32_t, (cl_handle))                                                       \
    X(clSetKernelArg, int32_t, (cl_handle, uint32_t, size_t, const void *))                        \
    X(clCreateBuffer, cl_handle, (cl_handle, uint64_t, size_t, void *, int32_t *))                 \
    X(clReleaseMemObject, int32_t, (cl_handle))                                                    \
    X(clEnqueueNDRangeKernel, int32_t,                                                             \
      (cl_handle, cl_handle, uint32_t, const size_t *, const size_t *, const size_t *, uint32_t,   \
       const cl_handle *, cl_handle *))                                                            \
    X(clEnqueueReadBuffer, int32_t,                                                                \
      (cl_handle, cl_handle, uint32_t, size_t, size_t, void *, uint32_t, const cl_handle *,        \
       cl_handle *))                                                                               \
    X(clEnqueueWriteBuffer, int32_t,                                                               \
      (cl_handle, cl_handle, uint32_t, size_t, size_t, const void *, uint32_t, const cl_handle *,  \
       cl_handle *))                                                                               \
    X(clEnqueueCopyBuffer, int32_t,                                                                \
      (cl_handle, cl_handle, cl_handle, size_t, size_t, size_t, uint32_t, const cl_handle *,       \
       cl_handle *))                                                                               \
    X(clFinish, int32_t, (cl_handle))

struct tl_opencl {
#define TL_CL_DECLARE(name, result, parameters) result(TL_CL_API *name) parameters;
    TL_CL_CALLS(TL_CL_DECLARE)
#undef TL_CL_DECLARE
};

/*
 * Opens the library that TINYLLM_OPENCL names, else the system's, once for the process. TL_ENOSUP
 * if there is none or it lacks a call; the next try opens it again.
 */
int tl_opencl_open(const struct tl_opencl **out, struct tl_error *err);

/* The name of a status, such as "CL_OUT_OF_RESOURCES". */
const char *tl_opencl_status(int status);

#endif
