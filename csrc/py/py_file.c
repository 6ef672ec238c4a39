/* py_file.c - tinyllm._core.File: the bytes of a file, mapped or read, as a read-only buffer. */
#include "py/py_file.h"

#include "base/os.h"

#include <errno.h>

typedef struct {
    PyObject_HEAD
    struct tl_file file;
    PyObject *path;
} file_object;

static PyObject *raise_os_error(tlpy_state *st, const struct tl_error *err, PyObject *path) {
    if (err->status == TL_EIO && err->sys_errno != 0) {
        PyObject *args = Py_BuildValue("(isO)", err->sys_errno, err->text, path);
        if (args != NULL) PyErr_SetObject(PyExc_OSError, args);
        Py_XDECREF(args);
        return NULL;
    }
    return tlpy_raise(st, err);
}

PyObject *tlpy_file_open(tlpy_state *st, PyObject *path, bool mapped, const uint8_t **data,
                         size_t *size) {
    PyTypeObject *type = tlpy_type(st, &tlpy_file_spec);
    struct tl_error err;
    struct tl_file file;
    file_object *self;
    PyObject *encoded;
    int status;
    if (!PyUnicode_FSConverter(path, &encoded)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = tl_file_open(&file, PyBytes_AS_STRING(encoded), mapped, &err);
    Py_END_ALLOW_THREADS
    Py_DECREF(encoded);
    if (status != TL_OK) return raise_os_error(st, &err, path);
    self = (file_object *)type->tp_alloc(type, 0);
    if (self == NULL) {
        tl_file_close(&file);
        return NULL;
    }
    self->file = file;
    self->path = Py_NewRef(path);
    *data = file.data;
    *size = file.size;
    return (PyObject *)self;
}

int tlpy_file_check(const tlpy_state *st, PyObject *owner) {
    const file_object *f;
    PyObject *args;
    if (tl_file_losses() == 0) return 0;
    if (PyMemoryView_Check(owner)) owner = PyMemoryView_GET_BUFFER(owner)->obj;
    if (owner == NULL || !Py_IS_TYPE(owner, tlpy_type(st, &tlpy_file_spec))) return 0;
    f = (const file_object *)owner;
    if (!tl_file_lost(&f->file)) return 0;
    args = Py_BuildValue("(isO)", EIO,
                         "the file became shorter, or could not be read, while it was mapped",
                         f->path);
    if (args != NULL) PyErr_SetObject(PyExc_OSError, args);
    Py_XDECREF(args);
    return -1;
}

void tlpy_file_forget(const tlpy_state *st, PyObject *owner, const uint8_t *data, size_t bytes) {
    if (PyMemoryView_Check(owner)) owner = PyMemoryView_GET_BUFFER(owner)->obj;
    if (owner == NULL || !Py_IS_TYPE(owner, tlpy_type(st, &tlpy_file_spec))) return;
    tl_file_forget(&((file_object *)owner)->file, data, bytes);
}

static PyObject *file_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"path", "mmap", NULL};
    const uint8_t *data;
    size_t size;
    PyObject *path;
    int mapped = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "U|p:File", names, &path, &mapped)) return NULL;
    return tlpy_file_open(PyType_GetModuleState(type), path, mapped != 0, &data, &size);
}

static void file_dealloc(PyObject *self) {
    file_object *f = (file_object *)self;
    PyTypeObject *type = Py_TYPE(self);
    tl_file_close(&f->file);
    Py_XDECREF(f->path);
    type->tp_free(self);
    Py_DECREF(type);
}

static int file_buffer(PyObject *self, Py_buffer *view, int flags) {
    const struct tl_file *file = &((file_object *)self)->file;
    return PyBuffer_FillInfo(view, self, (void *)file->data, (Py_ssize_t)file->size, 1, flags);
}

static PyObject *file_check(PyObject *self, PyObject *ignored) {
    (void)ignored;
    if (tlpy_file_check(tlpy_state_of(self), self) < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *file_forget(PyObject *self, PyObject *ignored) {
    const struct tl_file *file = &((file_object *)self)->file;
    (void)ignored;
    tl_file_forget(file, file->data, file->size);
    Py_RETURN_NONE;
}

static PyMethodDef file_methods[] = {
    {"forget", file_forget, METH_NOARGS,
     "forget($self, /)\n--\n\n"
     "Tell the system that the pages in memory are not needed for now. They are read again."},
    {"check", file_check, METH_NOARGS,
     "check($self, /)\n--\n\n"
     "Raise OSError if a part of the mapped file was missing when it was read."},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(file_doc,
             "File(path, mmap=True)\n--\n\n"
             "The bytes of a file, mapped or read, as a read-only buffer.\n\n"
             "If the file becomes shorter while it is mapped, missing bytes read as zeros, and\n"
             "`check` raises after such a read.");

static PyType_Slot file_slots[] = {
    {Py_tp_doc, (void *)file_doc}, {Py_tp_new, file_new},          {Py_tp_dealloc, file_dealloc},
    {Py_tp_methods, file_methods}, {Py_bf_getbuffer, file_buffer}, {0, NULL},
};

PyType_Spec tlpy_file_spec = {
    .name = "tinyllm._core.File",
    .basicsize = sizeof(file_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = file_slots,
};
