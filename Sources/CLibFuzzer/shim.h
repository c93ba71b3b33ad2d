#include <stddef.h>
#include <stdint.h>

// libFuzzer has no header of its own; this is its documented entry for programs with a main.
int LLVMFuzzerRunDriver(int *argc, char ***argv,
                        int (*callback)(const uint8_t *data, size_t size));
