/* py_device.h - the type _core.Device, and the list of devices. */
#ifndef TLPY_DEVICE_H
#define TLPY_DEVICE_H

#include "device/device.h"
#include "py/py_state.h"

extern PyType_Spec tlpy_device_spec;
extern PyMethodDef tlpy_device_methods[];

/* Whether an object is a Device; sets no exception. */
bool tlpy_device_check(const tlpy_state *st, PyObject *any);

/* The device of a Device, which lives as long as the object. */
struct tl_device *tlpy_device_of(PyObject *device);

#endif
