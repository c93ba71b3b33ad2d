#include "CPythonABI.h"

#include <stddef.h>

static void (*release_payload)(void *payload);

void engine_object_set_release(void (*release)(void *payload)) { release_payload = release; }

static PyMemberDef members[] = {
    {"__dictoffset__", T_PYSSIZET, offsetof(EngineObject, attributes), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(EngineObject, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyMemberDef *engine_object_members_table(void) { return members; }

void engine_object_dealloc(PyObject *self) {
  EngineObject *object = (EngineObject *)self;
  PyTypeObject *type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  if (object->weak_references != NULL) PyObject_ClearWeakRefs(self);
  Py_CLEAR(object->attributes);
  void *payload = object->payload;
  object->payload = NULL;
  if (payload != NULL) release_payload(payload);
  PyObject_GC_Del(self);
  Py_DECREF(type);
}

int engine_object_traverse(PyObject *self, visitproc visit, void *arg) {
  Py_VISIT(((EngineObject *)self)->attributes);
  Py_VISIT(Py_TYPE(self));
  return 0;
}

int engine_object_clear(PyObject *self) {
  Py_CLEAR(((EngineObject *)self)->attributes);
  return 0;
}
