/* py_model.c - _core.Model: a checked plan of steps, ready to run. */
#include "py/py_model.h"

#include "base/os.h"
#include "forward/cache.h"
#include "forward/device_plan.h"
#include "forward/forward.h"
#include "py/py_backward.h"
#include "py/py_device.h"
#include "py/py_forward.h"
#include "py/py_weight.h"

typedef struct {
    PyObject_HEAD
    struct tl_plan *plan;
    PyObject *weights; // a tuple of the Weights whose data the plan reads
    PyObject *device;  // the Device that its steps run on, or NULL
} model_object;

PyDoc_STRVAR(
    model_doc,
    "Model(steps, weights, /, *, layers, max_context, fast=False, device=None,\n"
    "      cache='f32', device_layers=None, device_steps=None)\n"
    "--\n"
    "\n"
    "A model as a list of steps, checked and ready to run.\n"
    "\n"
    "Immutable, and safe to share between threads. Every shape is derived from the steps' reads\n"
    "and numbers, and compared with the weights. `tinyllm.load` makes the steps.\n"
    "\n"
    "Parameters\n"
    "----------\n"
    "steps : sequence of (op, layer, reads, weights, numbers)\n"
    "    `op` is a name of ``OPS``; `layer` is -1 before the blocks and `layers` after them.\n"
    "    `reads`, `weights` and `numbers` are tuples: numbers of earlier steps, names of weights\n"
    "    (or None), and floats. ``csrc/forward/ops.c`` says what each op needs. The last step\n"
    "    gives the logits.\n"
    "weights : iterable of Weight\n"
    "    By their GGUF names. Weights that no step names are ignored.\n"
    "layers : int\n"
    "    Number of blocks.\n"
    "max_context : int\n"
    "    The most positions of a session.\n"
    "fast : bool\n"
    "    Round activations to eight bits.\n"
    "device : Device, optional\n"
    "    Where the steps run that have a kernel there; the weights that they read are copied.\n"
    "cache : str\n"
    "    The type of stored keys and values: 'f32', 'f16' or 'q8'.\n"
    "device_layers : int, optional\n"
    "    Only the steps of so many blocks, from the first one on, run on the device. Default: all.\n"
    "device_steps : bytes, optional\n"
    "    A byte for each step; with 0 it runs on the CPU. For tests.\n"
    "\n"
    "Raises\n"
    "------\n"
    "tinyllm.FormatError\n"
    "    A weight is missing or has another shape.\n"
    "tinyllm.UnsupportedError\n"
    "    A weight has a type that cannot be run, or a device is to have such a cache.\n"
    "MemoryError\n"
    "    The device has no memory for the weights.\n"
    "ValueError\n"
    "    Anything else in a step is wrong.\n"
    "\n"
    "Examples\n"
    "--------\n"
    ">>> import tinyllm\n"
    ">>> tinyllm.load().core.config['layers'] > 0\n"
    "True\n");

/* ---- the steps ---- */

/* The number of items of a tuple of step i; -1 with an exception if it is not a tuple or has more
   than `limit`. */
static int tuple_size(PyObject *tuple, int limit, Py_ssize_t i, const char *what) {
    if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) > limit) {
        PyErr_Format(PyExc_ValueError, "steps[%zd]: its %s must be a tuple of at most %d", i, what,
                     limit);
        return -1;
    }
    return (int)PyTuple_Size(tuple);
}

/* Reads a step in the core's terms; the texts that *out points to belong to `step`. */
static bool read_step(PyObject *step, Py_ssize_t i, struct tl_step_spec *out) {
    PyObject *reads, *weights, *numbers;
    if (!PyTuple_Check(step)) {
        PyErr_Format(PyExc_TypeError, "steps[%zd] is not a tuple", i);
        return false;
    }
    if (!PyArg_ParseTuple(step, "siOOO", &out->op, &out->layer, &reads, &weights, &numbers)) {
        return false;
    }
    out->n_reads = tuple_size(reads, TL_STEP_READS, i, "reads");
    out->n_weights = out->n_reads < 0 ? -1 : tuple_size(weights, TL_STEP_WEIGHTS, i, "weights");
    out->n_numbers = out->n_weights < 0 ? -1 : tuple_size(numbers, TL_STEP_NUMBERS, i, "numbers");
    if (out->n_numbers < 0) return false;
    for (int j = 0; j < out->n_reads; j++) {
        out->reads[j] = PyLong_AsSize_t(PyTuple_GetItem(reads, j));
        if (out->reads[j] == (size_t)-1 && PyErr_Occurred()) return false;
    }
    for (int j = 0; j < out->n_weights; j++) {
        PyObject *name = PyTuple_GetItem(weights, j);
        if (name == Py_None) continue;
        out->weights[j] = PyUnicode_AsUTF8(name);
        if (out->weights[j] == NULL) return false;
    }
    for (int j = 0; j < out->n_numbers; j++) {
        out->numbers[j] = PyFloat_AsDouble(PyTuple_GetItem(numbers, j));
        if (out->numbers[j] == -1 && PyErr_Occurred()) return false;
    }
    return true;
}

/* The steps in the core's terms, which PyMem_Free frees; NULL with an exception. */
static struct tl_step_spec *read_steps(PyObject *steps) {
    const Py_ssize_t n = PyTuple_Size(steps);
    struct tl_step_spec *specs = PyMem_Calloc(n ? (size_t)n : 1, sizeof(*specs));
    if (specs == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (!read_step(PyTuple_GetItem(steps, i), i, &specs[i])) {
            PyMem_Free(specs);
            return NULL;
        }
    }
    return specs;
}

/* Reads a Weight in the core's terms; `names` keeps the text that out->name points to. */
static bool read_weight(tlpy_state *st, PyObject *weight, PyObject *names, struct tl_tensor *out) {
    const struct tl_matrix *w;
    const size_t *shape;
    PyObject *name;
    if (!tlpy_weight_check(st, weight)) {
        PyErr_Format(PyExc_TypeError, "weights must be tinyllm Weights, not %.100s",
                     Py_TYPE(weight)->tp_name);
        return false;
    }
    name = PyObject_GetAttrString(weight, "name");
    if (name == NULL) return false;
    out->name = PyUnicode_AsUTF8(name);
    if (out->name == NULL) { // no step can name a text that is not valid UTF-8
        PyErr_Clear();
        out->name = "";
    }
    if (PyList_Append(names, name) < 0) {
        Py_DECREF(name);
        return false;
    }
    Py_DECREF(name);
    w = tlpy_weight_matrix(weight);
    shape = tlpy_weight_shape(weight, &out->n_dims);
    out->type = w->type;
    out->data = w->data;
    for (int i = 0; i < out->n_dims; i++) out->dims[i] = shape[out->n_dims - 1 - i];
    return true;
}

/* The weights in the core's terms, which PyMem_Free frees; NULL with an exception. */
static struct tl_tensor *read_weights(tlpy_state *st, PyObject *weights, PyObject *names) {
    const Py_ssize_t n = PyTuple_Size(weights);
    struct tl_tensor *tensors = PyMem_Calloc(n ? (size_t)n : 1, sizeof(*tensors));
    if (tensors == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (!read_weight(st, PyTuple_GetItem(weights, i), names, &tensors[i])) {
            PyMem_Free(tensors);
            return NULL;
        }
    }
    return tensors;
}

/* Whether a part of the file of one of the weights was missing when it was read; OSError is set. */
static bool weights_lost(const tlpy_state *st, PyObject *weights) {
    if (tl_file_losses() == 0) return false;
    for (Py_ssize_t i = 0; i < PyTuple_Size(weights); i++) {
        if (tlpy_weight_check_file(st, PyTuple_GetItem(weights, i)) < 0) return true;
    }
    return false;
}

bool tlpy_model_lost(PyObject *model) {
    return weights_lost(tlpy_state_of(model), ((model_object *)model)->weights);
}

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *keywords[] = {"",       "",      "layers",        "max_context",  "fast",
                               "device", "cache", "device_layers", "device_steps", NULL};
    PyObject *device = Py_None, *device_layers = Py_None;
    PyObject *given_steps, *given_weights, *steps = NULL, *weights = NULL, *names = PyList_New(0);
    model_object *self = NULL;
    struct tl_step_spec *specs = NULL;
    struct tl_tensor *tensors = NULL;
    struct tl_error err;
    tlpy_state *st = PyType_GetModuleState(type);
    struct tl_plan *plan = NULL;
    const char *device_steps = NULL, *cache = "f32";
    Py_ssize_t layers = 0, max_context = 0, most = 0, n_device_steps = 0;
    int status, fast = 0;

    if (names == NULL) return NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$nnpOsOz#:Model", keywords, &given_steps,
                                     &given_weights, &layers, &max_context, &fast, &device, &cache,
                                     &device_layers, &device_steps, &n_device_steps)) {
        goto done;
    }
    if (layers < 1 || max_context < 1) {
        PyErr_Format(PyExc_ValueError,
                     "layers is %zd and max_context is %zd; expected at least 1 each", layers,
                     max_context);
        goto done;
    }
    if (device != Py_None && !tlpy_device_check(st, device)) {
        PyErr_Format(PyExc_TypeError, "device is %.100s; expected a Device or None",
                     Py_TYPE(device)->tp_name);
        goto done;
    }
    if (device_layers != Py_None) {
        most = PyNumber_AsSsize_t(device_layers, PyExc_OverflowError);
        if (most == -1 && PyErr_Occurred()) goto done;
        if (most < 0) {
            PyErr_Format(PyExc_ValueError, "device_layers is %zd; expected 0 or more", most);
            goto done;
        }
    }
    steps = PySequence_Tuple(given_steps);
    if (steps != NULL && device_steps != NULL && n_device_steps != PyTuple_Size(steps)) {
        PyErr_Format(PyExc_ValueError,
                     "device_steps has %zd bytes; expected one for each of %zd steps",
                     n_device_steps, PyTuple_Size(steps));
        goto done;
    }
    weights = steps != NULL ? PySequence_Tuple(given_weights) : NULL;
    specs = weights != NULL ? read_steps(steps) : NULL;
    tensors = specs != NULL ? read_weights(st, weights, names) : NULL;
    if (tensors == NULL) goto done;
    {
        const struct tl_plan_options options = {
            .layers = (size_t)layers,
            .max_context = (size_t)max_context,
            .fast = fast != 0,
            .cache = cache,
            .device = device != Py_None ? tlpy_device_of(device) : NULL,
            .device_layers = device_layers != Py_None ? (size_t)most : SIZE_MAX,
            .device_steps = (const uint8_t *)device_steps};
        const size_t n = (size_t)PyTuple_Size(steps), n_tensors = (size_t)PyTuple_Size(weights);
        Py_BEGIN_ALLOW_THREADS
        status = tl_plan_new(&options, specs, n, tensors, n_tensors, &plan, &err);
        Py_END_ALLOW_THREADS
    }
    if (weights_lost(st, weights)) {
        if (status == TL_OK) tl_plan_free(plan);
        goto done;
    }
    if (status != TL_OK) {
        tlpy_raise(st, &err);
        goto done;
    }
    self = (model_object *)PyType_GenericAlloc(type, 0);
    if (self == NULL) {
        tl_plan_free(plan);
    } else {
        self->plan = plan;
        self->weights = Py_NewRef(weights);
        self->device = device != Py_None ? Py_NewRef(device) : NULL;
    }
done:
    PyMem_Free(tensors);
    PyMem_Free(specs);
    Py_XDECREF(steps);
    Py_XDECREF(weights);
    Py_DECREF(names);
    return (PyObject *)self;
}

static int model_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((model_object *)self)->weights);
    Py_VISIT(((model_object *)self)->device);
    return 0;
}

static void model_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    tl_plan_free(((model_object *)self)->plan);
    Py_CLEAR(((model_object *)self)->weights);
    Py_CLEAR(((model_object *)self)->device);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

const struct tl_plan *tlpy_model_plan(PyObject *model) {
    return ((model_object *)model)->plan;
}

static PyObject *model_config(PyObject *op, void *closure) {
    const struct tl_plan *p = ((model_object *)op)->plan;
    (void)closure;
    return Py_BuildValue("{snsnsnsn}", "layers", (Py_ssize_t)p->layers, "width",
                         (Py_ssize_t)p->width, "vocab_size", (Py_ssize_t)p->vocab_size,
                         "max_context", (Py_ssize_t)p->max_context);
}

static PyObject *model_cache(PyObject *op, void *closure) {
    (void)closure;
    return PyUnicode_FromString(((model_object *)op)->plan->cache_type->name);
}

/* The shape of a step's value without T, (H,) for a matrix; None for a cache. */
static PyObject *shape_of(const struct tl_step *s) {
    PyObject *shape;
    if (s->value == TL_VALUE_NONE) Py_RETURN_NONE;
    shape = PyTuple_New(s->n_axes);
    for (int i = 0; shape != NULL && i < s->n_axes; i++) {
        PyObject *size = PyLong_FromSize_t(s->axes[i]);
        if (size == NULL || PyTuple_SetItem(shape, i, size) < 0) Py_CLEAR(shape);
    }
    return shape;
}

static PyObject *model_on_device(PyObject *op, void *closure) {
    const struct tl_plan *p = ((model_object *)op)->plan;
    PyObject *flags = PyTuple_New((Py_ssize_t)p->n);
    (void)closure;
    for (size_t i = 0; flags != NULL && i < p->n; i++) {
        const bool on = p->device != NULL && p->device->steps[i].on;
        if (PyTuple_SetItem(flags, (Py_ssize_t)i, PyBool_FromLong(on)) < 0) Py_CLEAR(flags);
    }
    return flags;
}

static PyObject *model_device_bytes(PyObject *op, void *closure) {
    const struct tl_plan *p = ((model_object *)op)->plan;
    (void)closure;
    return PyLong_FromSize_t(p->device != NULL ? p->device->weight_bytes : 0);
}

static PyObject *model_shapes(PyObject *op, void *closure) {
    const struct tl_plan *p = ((model_object *)op)->plan;
    PyObject *shapes = PyTuple_New((Py_ssize_t)p->n);
    (void)closure;
    for (size_t i = 0; shapes != NULL && i < p->n; i++) {
        PyObject *shape = shape_of(&p->steps[i]);
        if (shape == NULL || PyTuple_SetItem(shapes, (Py_ssize_t)i, shape) < 0) Py_CLEAR(shapes);
    }
    return shapes;
}

PyDoc_STRVAR(memory_doc, "memory($self, tokens, threads, /)\n"
                         "--\n"
                         "\n"
                         "(bytes of the kv cache, bytes of the buffers) for a prompt of `tokens`\n"
                         "tokens. ValueError if they exceed the context.\n");

static PyObject *model_memory(PyObject *op, PyObject *args) {
    const model_object *self = (model_object *)op;
    Py_ssize_t tokens;
    size_t cache = 0, work = 0;
    int threads;
    struct tl_error err;
    if (!PyArg_ParseTuple(args, "ni:memory", &tokens, &threads)) return NULL;
    if (threads < 1) {
        PyErr_Format(PyExc_ValueError, "threads is %d; expected at least 1", threads);
        return NULL;
    }
    if (tl_forward_bytes(self->plan, tokens < 0 ? 0 : (size_t)tokens, threads, &cache, &work,
                         &err) != TL_OK) {
        return tlpy_raise(tlpy_state_of(op), &err);
    }
    return Py_BuildValue("(nn)", (Py_ssize_t)cache, (Py_ssize_t)work);
}

PyDoc_STRVAR(device_memory_doc, "device_memory($self, tokens, /)\n"
                                "--\n"
                                "\n"
                                "Bytes on the device: the weights, and what a session of `tokens`\n"
                                "tokens keeps there. 0 without a device.\n");

static PyObject *model_device_memory(PyObject *op, PyObject *arg) {
    const Py_ssize_t tokens = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
    if (tokens == -1 && PyErr_Occurred()) return NULL;
    return PyLong_FromSize_t(
        device_plan_bytes(((model_object *)op)->plan, (size_t)TL_MAX(tokens, (Py_ssize_t)0)));
}

static PyMethodDef model_methods[] = {
    {"forward", (PyCFunction)(void (*)(void))tlpy_forward, METH_VARARGS | METH_KEYWORDS,
     tlpy_forward_doc},
    {"backward", (PyCFunction)(void (*)(void))tlpy_backward, METH_VARARGS | METH_KEYWORDS,
     tlpy_backward_doc},
    {"memory", model_memory, METH_VARARGS, memory_doc},
    {"device_memory", model_device_memory, METH_O, device_memory_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef model_getset[] = {
    {"config", model_config, NULL, "dict : layers, width, vocab_size and max_context.", NULL},
    {"cache", model_cache, NULL, "str : the type of stored keys and values.", NULL},
    {"on_device", model_on_device, NULL, "tuple of bool : the steps that run on the device.", NULL},
    {"device_bytes", model_device_bytes, NULL,
     "int : bytes of weights in the memory of the device.", NULL},
    {"shapes", model_shapes, NULL,
     "tuple : the shape of each step's value without T, (H,) for a matrix (H, T, S), None for a "
     "cache.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot model_slots[] = {
    {Py_tp_doc, (void *)model_doc},
    {Py_tp_new, model_new},
    {Py_tp_traverse, model_traverse},
    {Py_tp_dealloc, model_dealloc},
    {Py_tp_methods, model_methods},
    {Py_tp_getset, model_getset},
    {0, NULL},
};

PyType_Spec tlpy_model_spec = {
    .name = "tinyllm._core.Model",
    .basicsize = sizeof(model_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = model_slots,
};
