/* py_device.c - _core.Device: a device of OpenCL that passed the test of its arithmetic. */
#include "py/py_device.h"

#include "base/fpu.h"
#include "device/selftest.h"

#include <string.h>

typedef struct {
    PyObject_HEAD
    struct tl_device *device;
    size_t compared; // results of the test that it passed
} device_object;

bool tlpy_device_check(const tlpy_state *st, PyObject *any) {
    return PyObject_TypeCheck(any, tlpy_type(st, &tlpy_device_spec));
}

struct tl_device *tlpy_device_of(PyObject *device) {
    return ((device_object *)device)->device;
}

/* The number of a level's name; -1 with an exception. */
static int level_of(const char *name) {
    for (int i = 0; i < TL_LEVELS; i++) {
        if (strcmp(tl_level_names[i], name) == 0) return i;
    }
    PyErr_Format(PyExc_ValueError,
                 "level is '%s'; expected 'native', 'division', 'float32' or 'integers'", name);
    return -1;
}

PyDoc_STRVAR(
    device_doc,
    "Device(index, /, *, cache=None, options='', level='native', group=0, launch=0)\n"
    "--\n"
    "\n"
    "A device of OpenCL, opened at the highest level of arithmetic that gives the bits of\n"
    "the CPU.\n"
    "\n"
    "Safe to share between threads. `tinyllm.load` opens devices; `tinyllm.devices` lists\n"
    "them.\n"
    "\n"
    "Parameters\n"
    "----------\n"
    "index : int\n"
    "    The place in ``device_list()``.\n"
    "cache : str, optional\n"
    "    A folder for compiled programs, which must exist.\n"
    "options : str\n"
    "    Further options of the compiler, for tests.\n"
    "level : str\n"
    "    The highest level to try: 'native', 'division', 'float32' or 'integers'.\n"
    "group : int\n"
    "    Work-items of a group; 0: the default. No result depends on it.\n"
    "launch : int\n"
    "    The most multiplications of a launch; 0: as many as take about 50 ms. No result\n"
    "    depends on it.\n"
    "\n"
    "Raises\n"
    "------\n"
    "tinyllm.UnsupportedError\n"
    "    There is no OpenCL library, or the device does not give the bits of the CPU.\n"
    "tinyllm.DeviceError\n"
    "    A call of OpenCL failed.\n"
    "MemoryError\n"
    "    The device has no memory for the test.\n"
    "\n"
    "Examples\n"
    "--------\n"
    ">>> from tinyllm import _core\n"
    ">>> try:\n"
    "...     level = _core.Device(0).level\n"
    "... except Exception:  # there is no device here\n"
    "...     level = 'native'\n"
    ">>> level in ('native', 'division', 'float32', 'integers')\n"
    "True\n");

static PyObject *device_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *keywords[] = {"", "cache", "options", "level", "group", "launch", NULL};
    const char *extra = "", *level = "native", *folder = NULL;
    PyObject *cache = Py_None, *encoded = NULL;
    Py_ssize_t index, group = 0, launch = 0;
    struct tl_device_options options = {0};
    struct tl_selftest result = {0};
    struct tl_device *device = NULL;
    struct tl_error err;
    device_object *self;
    int status;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "n|$Ossnn:Device", keywords, &index, &cache,
                                     &extra, &level, &group, &launch)) {
        return NULL;
    }
    options.level = level_of(level);
    if (options.level < 0) return NULL;
    if (index < 0 || group < 0 || group > 4096 || launch < 0) {
        return PyErr_Format(PyExc_ValueError,
                            "index is %zd, group %zd and launch %zd; expected at least 0, and a "
                            "group of at most 4096",
                            index, group, launch);
    }
    if (cache != Py_None && !PyUnicode_FSConverter(cache, &encoded)) return NULL;
    if (encoded != NULL) folder = PyBytes_AsString(encoded);
    options.cache = folder;
    options.options = extra;
    options.group = (size_t)group;
    options.launch = (size_t)launch;
    Py_BEGIN_ALLOW_THREADS
    const uint64_t fpu = tl_fpu_enter();
    status = tl_selftest_open((size_t)index, &options, &device, &result, &err);
    tl_fpu_leave(fpu);
    Py_END_ALLOW_THREADS
    Py_XDECREF(encoded);
    if (status != TL_OK) return tlpy_raise(PyType_GetModuleState(type), &err);
    self = (device_object *)PyType_GenericAlloc(type, 0);
    if (self == NULL) {
        tl_device_close(device);
        return NULL;
    }
    self->device = device;
    self->compared = result.compared;
    return (PyObject *)self;
}

static void device_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    tl_device_close(((device_object *)self)->device);
    PyObject_Free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(device_test_doc,
             "test($self, type=None, fast=False, /)\n"
             "--\n"
             "\n"
             "Compare the device with the CPU again: (results, how many differ, the first that\n"
             "differs as text).\n"
             "\n"
             "Parameters\n"
             "----------\n"
             "type : int, optional\n"
             "    The number of a tensor type in ggml: only its matmul is tested.\n"
             "fast : bool\n"
             "    Test the matmul of fast mode.\n"
             "\n"
             "Raises\n"
             "------\n"
             "ValueError\n"
             "    There is no kernel for the type.\n"
             "tinyllm.DeviceError\n"
             "    A call of OpenCL failed.\n");

static PyObject *device_test(PyObject *op, PyObject *args) {
    struct tl_device *d = ((device_object *)op)->device;
    const struct tl_type_info *type = NULL;
    struct tl_selftest result = {0};
    struct tl_error err;
    PyObject *number = Py_None;
    int status, fast = 0;
    if (!PyArg_ParseTuple(args, "|Op:test", &number, &fast)) return NULL;
    if (number != Py_None) {
        const unsigned long id = PyLong_AsUnsignedLong(number);
        if (PyErr_Occurred()) return NULL;
        type = id < TL_TYPE_COUNT ? tl_type_find((uint32_t)id) : NULL;
        if (type == NULL || !tl_device_knows_type(type)) {
            return PyErr_Format(PyExc_ValueError, "type is %R; expected one that has a kernel",
                                number);
        }
    }
    Py_BEGIN_ALLOW_THREADS
    const uint64_t fpu = tl_fpu_enter();
    status = type != NULL ? tl_selftest_type(d, type, fast != 0, &result, &err)
                          : tl_selftest_run(d, &result, &err);
    tl_fpu_leave(fpu);
    Py_END_ALLOW_THREADS
    if (status != TL_OK) return tlpy_raise(tlpy_state_of(op), &err);
    return Py_BuildValue("nns", (Py_ssize_t)result.compared, (Py_ssize_t)result.differ,
                         result.first);
}

static PyObject *device_name(PyObject *op, void *closure) {
    const char *name = tl_device_facts(((device_object *)op)->device)->name;
    (void)closure;
    return PyUnicode_DecodeUTF8(name, (Py_ssize_t)strlen(name), "replace");
}

static PyObject *device_level(PyObject *op, void *closure) {
    (void)closure;
    return PyUnicode_FromString(tl_level_names[tl_device_level(((device_object *)op)->device)]);
}

static PyObject *device_dots(PyObject *op, void *closure) {
    (void)closure;
    return PyBool_FromLong(tl_device_dots(((device_object *)op)->device));
}

static PyObject *device_compared(PyObject *op, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(((device_object *)op)->compared);
}

static PyObject *device_lost(PyObject *op, void *closure) {
    bool lost;
    (void)closure;
    Py_BEGIN_ALLOW_THREADS
    lost = tl_device_lost(((device_object *)op)->device);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(lost);
}

static PyObject *device_used(PyObject *op, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(tl_device_used(((device_object *)op)->device));
}

static PyMethodDef device_methods[] = {
    {"test", device_test, METH_VARARGS, device_test_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef device_getset[] = {
    {"name", device_name, NULL, "str : what the driver calls the device.", NULL},
    {"level", device_level, NULL,
     "str : what the device computes natively: 'native' (float64 and float32), 'division' (but "
     "for float32 division), 'float32' (not float64), 'integers' (nothing). The bits are the same.",
     NULL},
    {"dots", device_dots, NULL,
     "bool : whether fast mode uses dot products of integers that the device has.", NULL},
    {"compared", device_compared, NULL, "int : results of the test that the device passed.", NULL},
    {"lost", device_lost, NULL, "bool : whether the device answers no longer.", NULL},
    {"used", device_used, NULL, "int : bytes of its memory that this process has taken.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot device_slots[] = {
    {Py_tp_doc, (void *)device_doc}, {Py_tp_new, device_new},       {Py_tp_dealloc, device_dealloc},
    {Py_tp_methods, device_methods}, {Py_tp_getset, device_getset}, {0, NULL},
};

PyType_Spec tlpy_device_spec = {
    .name = "tinyllm._core.Device",
    .basicsize = sizeof(device_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = device_slots,
};

/* ---- the list ---- */

#define MOST_DEVICES 64

PyDoc_STRVAR(
    device_list_doc,
    "device_list()\n"
    "--\n"
    "\n"
    "The devices of OpenCL: a dict with name, driver, version, memory, largest and gpu for\n"
    "each.\n"
    "\n"
    "UnsupportedError if there is no OpenCL library.\n");

static PyObject *device_list(PyObject *module, PyObject *Py_UNUSED(none)) {
    struct tl_device_info *found = PyMem_Calloc(MOST_DEVICES, sizeof(*found));
    PyObject *list = NULL;
    struct tl_error err;
    size_t n = 0;
    int status;
    if (found == NULL) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    status = tl_device_list(found, MOST_DEVICES, &n, &err);
    Py_END_ALLOW_THREADS
    if (status == TL_OK)
        list = PyList_New(0);
    else
        tlpy_raise(PyModule_GetState(module), &err);
    for (size_t i = 0; list != NULL && i < TL_MIN(n, (size_t)MOST_DEVICES); i++) {
        const struct tl_device_info *d = &found[i];
        PyObject *item =
            Py_BuildValue("{sssssssKsKsO}", "name", d->name, "driver", d->driver, "version",
                          d->version, "memory", (unsigned long long)d->memory, "largest",
                          (unsigned long long)d->largest, "gpu", d->gpu ? Py_True : Py_False);
        if (item == NULL || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    PyMem_Free(found);
    return list;
}

PyMethodDef tlpy_device_methods[] = {
    {"device_list", device_list, METH_NOARGS, device_list_doc},
    {NULL, NULL, 0, NULL},
};
