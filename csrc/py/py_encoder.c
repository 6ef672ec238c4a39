/* py_encoder.c - the type _core.Encoder: texts to ids, for tinyllm.tokenizer. */
#include "py/py_encoder.h"

#include "py/py_array.h"
#include "text/encoder.h"

#include <string.h>

typedef struct {
    PyObject_HEAD
    struct tl_encoder *encoder; // owns
} encoder_object;

/* The UTF-8 of a str; lone surrogates become the bytes that surrogateescape hid in them. */
static const char *utf8_of(PyObject *text, Py_ssize_t *size, PyObject **owner) {
    const char *data;
    *owner = NULL;
    if (!PyUnicode_Check(text)) {
        PyErr_Format(PyExc_TypeError, "expected a str, not %.100s", Py_TYPE(text)->tp_name);
        return NULL;
    }
    data = PyUnicode_AsUTF8AndSize(text, size);
    if (data != NULL || !PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) return data;
    PyErr_Clear();
    *owner = PyUnicode_AsEncodedString(text, "utf-8", "surrogateescape");
    if (*owner == NULL) return NULL;
    *size = PyBytes_GET_SIZE(*owner);
    return PyBytes_AS_STRING(*owner);
}

static bool add_tokens(struct tl_encoder *e, PyObject *tokens, PyObject *weak, PyObject *scores,
                       struct tl_error *err) {
    const Py_ssize_t n = PyList_GET_SIZE(tokens);
    size_t n_weak = 0, n_scores = 0;
    const uint8_t *weak_at = tlpy_array_read(weak, &n_weak);
    const double *score_at = scores == Py_None ? NULL : tlpy_array_read(scores, &n_scores);
    if (n_weak != (size_t)n || (score_at != NULL && n_scores != (size_t)n)) {
        PyErr_SetString(PyExc_ValueError, "weak and scores must have one value per token");
        return false;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *owner;
        Py_ssize_t size;
        const char *text = utf8_of(PyList_GET_ITEM(tokens, i), &size, &owner);
        const double score = score_at == NULL ? 0 : score_at[i];
        const bool ok = text != NULL && tl_encoder_add_token(e, text, (size_t)size, score,
                                                             weak_at[i] != 0, err) == TL_OK;
        Py_XDECREF(owner);
        if (!ok) return false;
    }
    return true;
}

static bool add_merges(struct tl_encoder *e, PyObject *merges, struct tl_error *err) {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(merges); i++) {
        PyObject *owner;
        Py_ssize_t size;
        const char *text = utf8_of(PyList_GET_ITEM(merges, i), &size, &owner);
        int status = text == NULL ? TL_EARG : tl_encoder_add_merge(e, text, (size_t)size, err);
        if (status == TL_EFORMAT) {
            char field[64];
            PyOS_snprintf(field, sizeof field, "tokenizer.ggml.merges[%zd]", i);
            tl_fail_format(err, field, UINT64_MAX, text, "two parts with a space between them");
        }
        Py_XDECREF(owner);
        if (status != TL_OK) return false;
    }
    return true;
}

/* splitter: (program, ranges, class ends), int32 arrays. */
static bool add_splitter(struct tl_encoder *e, PyObject *splitter, struct tl_error *err) {
    PyObject *arrays[3] = {NULL, NULL, NULL};
    const int32_t *data[3];
    size_t sizes[3];
    struct tl_pretokenizer *s = NULL;
    bool ok = false;
    if (!PyTuple_Check(splitter) || PyTuple_GET_SIZE(splitter) != 3) {
        PyErr_SetString(PyExc_TypeError, "a splitter must be a tuple of three int32 arrays");
        return false;
    }
    for (int i = 0; i < 3; i++) {
        arrays[i] = tlpy_array_from(PyTuple_GET_ITEM(splitter, i), TLPY_I32);
        if (arrays[i] == NULL) goto done;
        data[i] = tlpy_array_read(arrays[i], &sizes[i]);
    }
    for (size_t c = 0; c < sizes[2]; c++) {
        const int32_t before = c == 0 ? 0 : data[2][c - 1];
        if (data[2][c] < before || 2 * (size_t)data[2][c] > sizes[1]) {
            PyErr_Format(PyExc_ValueError, "class %zu ends at range %d; expected %d to %zu", c,
                         (int)data[2][c], (int)before, sizes[1] / 2);
            goto done;
        }
    }
    ok = tl_pretokenizer_new(data[0], sizes[0], data[1], data[2], sizes[2], &s, err) == TL_OK &&
         tl_encoder_add_pretokenizer(e, s, err) == TL_OK;
done:
    for (int i = 0; i < 3; i++) Py_XDECREF(arrays[i]);
    return ok;
}

static bool fill(struct tl_encoder *e, PyObject *tokens, PyObject *weak, PyObject *scores,
                 PyObject *merges, PyObject *splitters, struct tl_error *err) {
    if (!add_tokens(e, tokens, weak, scores, err) || !add_merges(e, merges, err)) return false;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(splitters); i++) {
        if (!add_splitter(e, PyList_GET_ITEM(splitters, i), err)) return false;
    }
    return true;
}

static const char *const kind_names[] = {
    [TL_ENCODER_SPM] = "spm",
    [TL_ENCODER_BPE_BYTES] = "bpe-bytes",
    [TL_ENCODER_BPE_LETTERS] = "bpe-letters",
};

static PyObject *encoder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"kind",   "tokens",    "weak",          "byte_ids",      "scores",
                            "merges", "splitters", "ignore_merges", "cut_at_spaces", NULL};
    PyObject *tokens, *weak_arg, *byte_ids_arg, *scores_arg, *merges, *splitters;
    PyObject *weak = NULL, *byte_ids = NULL, *scores = NULL;
    encoder_object *self = NULL;
    const char *kind;
    int ignore_merges, cut_at_spaces;
    size_t k = 0, n;
    const int32_t *ids;
    struct tl_error err = {.status = TL_OK};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO!OOOO!O!pp", names, &kind, &PyList_Type,
                                     &tokens, &weak_arg, &byte_ids_arg, &scores_arg, &PyList_Type,
                                     &merges, &PyList_Type, &splitters, &ignore_merges,
                                     &cut_at_spaces)) {
        return NULL;
    }
    while (k < TL_ARRAY_LEN(kind_names) && strcmp(kind, kind_names[k]) != 0) k++;
    if (k == TL_ARRAY_LEN(kind_names)) {
        return PyErr_Format(PyExc_ValueError,
                            "kind is '%s'; expected 'spm', 'bpe-bytes' or 'bpe-letters'", kind);
    }
    weak = tlpy_array_from(weak_arg, TLPY_U8);
    byte_ids = tlpy_array_from(byte_ids_arg, TLPY_I32);
    scores = scores_arg == Py_None ? Py_NewRef(Py_None) : tlpy_array_from(scores_arg, TLPY_F64);
    if (weak == NULL || byte_ids == NULL || scores == NULL) goto done;
    ids = tlpy_array_read(byte_ids, &n);
    if (n != 256) {
        PyErr_Format(PyExc_ValueError, "byte_ids has %zu values; expected 256", n);
        goto done;
    }
    self = (encoder_object *)type->tp_alloc(type, 0);
    if (self == NULL) goto done;
    if (tl_encoder_new((enum tl_encoder_kind)k, ids, (size_t)PyList_GET_SIZE(tokens),
                       (size_t)PyList_GET_SIZE(merges), &self->encoder, &err) < 0 ||
        !fill(self->encoder, tokens, weak, scores, merges, splitters, &err)) {
        tlpy_state *st = tlpy_state_of((PyObject *)self);
        if (!PyErr_Occurred() && st != NULL) tlpy_raise(st, &err);
        Py_CLEAR(self);
        goto done;
    }
    if (ignore_merges) tl_encoder_ignore_merges(self->encoder);
    if (cut_at_spaces) tl_encoder_cut_at_spaces(self->encoder);
done:
    Py_XDECREF(weak);
    Py_XDECREF(byte_ids);
    Py_XDECREF(scores);
    return (PyObject *)self;
}

static void encoder_dealloc(PyObject *op) {
    PyTypeObject *type = Py_TYPE(op);
    tl_encoder_free(((encoder_object *)op)->encoder);
    type->tp_free(op);
    Py_DECREF(type);
}

/* (list of ids, bytes that were dropped) */
static PyObject *result_of(const struct tl_ids *ids) {
    PyObject *list = PyList_New((Py_ssize_t)ids->n), *dropped, *result;
    char bytes[256];
    Py_ssize_t n_dropped = 0;
    if (list == NULL) return NULL;
    for (size_t i = 0; i < ids->n; i++) {
        PyObject *id = PyLong_FromLong(ids->at[i]);
        if (id == NULL) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, id);
    }
    for (int b = 0; b < 256; b++) {
        if (ids->dropped[b >> 3] >> (b & 7) & 1) bytes[n_dropped++] = (char)b;
    }
    dropped = PyBytes_FromStringAndSize(bytes, n_dropped);
    result = dropped == NULL ? NULL : PyTuple_Pack(2, list, dropped);
    Py_DECREF(list);
    Py_XDECREF(dropped);
    return result;
}

/* Copies an array of ends: rising numbers up to n. */
static bool read_ends(PyObject *any, size_t n, struct tl_ends *ends, struct tl_error *err) {
    PyObject *array = tlpy_array_from(any, TLPY_I64);
    const int64_t *at;
    size_t count;
    int64_t before = 0;
    bool ok = array != NULL;
    if (!ok) return false;
    at = tlpy_array_read(array, &count);
    for (size_t i = 0; i < count && ok; i++) {
        if (at[i] < before || (uint64_t)at[i] > n) {
            PyErr_Format(PyExc_ValueError, "ends[%zu] is %lld; expected rising numbers up to %zu",
                         i, (long long)at[i], n);
            ok = false;
        } else {
            ok = tl_ends_add(ends, (size_t)at[i], err) == TL_OK;
            before = at[i];
        }
    }
    Py_DECREF(array);
    return ok;
}

PyDoc_STRVAR(encode_doc, "encode($self, text, ends=None, /)\n"
                         "--\n"
                         "\n"
                         "The ids of a text, and the bytes that have no token.\n"
                         "\n"
                         "Parameters\n"
                         "----------\n"
                         "text : bytes\n"
                         "    Valid UTF-8 for the BPE kinds.\n"
                         "ends : array of int64, optional\n"
                         "    Where the words end, if the text is already cut.\n"
                         "\n"
                         "Returns\n"
                         "-------\n"
                         "tuple of list of int and bytes\n");

static PyObject *encoder_encode(PyObject *op, PyObject *args) {
    const struct tl_encoder *e = ((encoder_object *)op)->encoder;
    PyObject *text, *ends_arg = Py_None, *result = NULL;
    struct tl_ends ends = {0};
    struct tl_ids ids = {0};
    struct tl_error err = {.status = TL_OK};
    int status;
    if (!PyArg_ParseTuple(args, "S|O", &text, &ends_arg)) return NULL;
    const size_t n = (size_t)PyBytes_GET_SIZE(text);
    const uint8_t *data = (const uint8_t *)PyBytes_AS_STRING(text);
    if (ends_arg != Py_None && !read_ends(ends_arg, n, &ends, &err)) {
        status = err.status;
    } else {
        Py_BEGIN_ALLOW_THREADS
        status = tl_encoder_run(e, data, n, ends_arg == Py_None ? NULL : &ends, &ids, &err);
        Py_END_ALLOW_THREADS
    }
    if (status < 0) {
        tlpy_state *st = tlpy_state_of(op);
        if (st != NULL) tlpy_raise(st, &err);
    } else if (!PyErr_Occurred()) {
        result = result_of(&ids);
    }
    tl_ends_free(&ends);
    tl_ids_free(&ids);
    return result;
}

static PyMethodDef encoder_methods[] = {
    {"encode", encoder_encode, METH_VARARGS, encode_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(encoder_doc, "The inner loops of a tokenizer, for tinyllm.tokenizer.\n"
                          "\n"
                          "Immutable: any number of threads may use it at once.");

static PyType_Slot encoder_slots[] = {
    {Py_tp_new, encoder_new},
    {Py_tp_dealloc, encoder_dealloc},
    {Py_tp_methods, encoder_methods},
    {Py_tp_doc, (void *)encoder_doc},
    {0, NULL},
};

PyType_Spec tlpy_encoder_spec = {
    .name = "tinyllm._core.Encoder",
    .basicsize = sizeof(encoder_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = encoder_slots,
};
