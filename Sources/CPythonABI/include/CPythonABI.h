// The only #include of Python.h, and what Swift cannot import of it: macros, variadic functions
// and the layout of our own objects.
#ifndef C_PYTHON_ABI_H
#define C_PYTHON_ABI_H

// Before Python.h: otherwise a file that also imports Glibc fails on `fd_set` in a clean build.
#include <features.h>

// The stable ABI of CPython 3.11: one binary for it and everything newer.
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

// MARK: References and singletons (macros)

static inline void py_incref(PyObject *object) { Py_INCREF(object); }
static inline void py_decref(PyObject *object) { Py_DECREF(object); }
static inline PyObject *py_none(void) { return Py_None; }
static inline PyObject *py_true(void) { return Py_True; }
static inline PyObject *py_false(void) { return Py_False; }
static inline PyTypeObject *py_type(PyObject *object) { return Py_TYPE(object); }
static inline int py_is_exact_bytes(PyObject *object) { return PyBytes_CheckExact(object); }
static inline int py_is_bytes(PyObject *object) { return PyBytes_Check(object); }
static inline int py_is_string(PyObject *object) { return PyUnicode_Check(object); }
static inline int py_is_exact_string(PyObject *object) { return PyUnicode_CheckExact(object); }
static inline int py_is_int(PyObject *object) { return PyLong_Check(object); }
static inline int py_is_exact_int(PyObject *object) { return PyLong_CheckExact(object); }
static inline int py_is_exact_float(PyObject *object) { return PyFloat_CheckExact(object); }
static inline int py_is_exact_tuple(PyObject *object) { return PyTuple_CheckExact(object); }
static inline int py_is_bool(PyObject *object) { return PyBool_Check(object); }
static inline int py_is_callable(PyObject *object) { return PyCallable_Check(object); }

// Variables that Swift 6 takes for shared mutable state.
static inline PyObject *py_value_error(void) { return PyExc_ValueError; }
static inline PyObject *py_type_error(void) { return PyExc_TypeError; }
static inline PyObject *py_attribute_error(void) { return PyExc_AttributeError; }
static inline PyObject *py_runtime_error(void) { return PyExc_RuntimeError; }
static inline PyObject *py_os_error(void) { return PyExc_OSError; }
static inline PyObject *py_stop_iteration(void) { return PyExc_StopIteration; }
static inline PyObject *py_stop_async_iteration(void) { return PyExc_StopAsyncIteration; }

// MARK: Calls (variadic)

static inline PyObject *py_call0(PyObject *callable) { return PyObject_CallNoArgs(callable); }
static inline PyObject *py_call1(PyObject *callable, PyObject *a) {
  return PyObject_CallFunctionObjArgs(callable, a, NULL);
}
static inline PyObject *py_call2(PyObject *callable, PyObject *a, PyObject *b) {
  return PyObject_CallFunctionObjArgs(callable, a, b, NULL);
}
static inline PyObject *py_call3(PyObject *callable, PyObject *a, PyObject *b, PyObject *c) {
  return PyObject_CallFunctionObjArgs(callable, a, b, c, NULL);
}
static inline PyObject *py_call_method0(PyObject *object, PyObject *name) {
  return PyObject_CallMethodObjArgs(object, name, NULL);
}
static inline PyObject *py_call_method2(
    PyObject *object, PyObject *name, PyObject *a, PyObject *b) {
  return PyObject_CallMethodObjArgs(object, name, a, b, NULL);
}

// MARK: Objects with a Swift payload

/// The layout of every object of this module: a retained Swift instance, and room for the
/// attributes and weak references of types that allow them.
typedef struct {
  PyObject_HEAD
  void *payload;
  PyObject *attributes;
  PyObject *weak_references;
} EngineObject;

static inline void *engine_object_payload(PyObject *object) {
  return ((EngineObject *)object)->payload;
}
static inline void engine_object_set_payload(PyObject *object, void *payload) {
  ((EngineObject *)object)->payload = payload;
}

/// Sets how a payload is released, with the GIL held; before the first type is made.
void engine_object_set_release(void (*release)(void *payload));

/// Members that give a type's instances `__dict__` and weak references.
PyMemberDef *engine_object_members_table(void);

void engine_object_dealloc(PyObject *self);
int engine_object_traverse(PyObject *self, visitproc visit, void *argument);
int engine_object_clear(PyObject *self);

#endif
