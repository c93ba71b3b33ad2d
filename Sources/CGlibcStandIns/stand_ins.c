// What a binary refers to of the C library decides with which ones it can be loaded: the linker takes
// the newest version of each symbol that the building machine has. All but one of those that the
// engine refers to are as old as glibc 2.34, of 2021, before which threads were a library apart.
//
// So this stands in for glibc's function of the same name, which is newer (2.35) only for what it does
// to errno. It is hidden: the rest of the process keeps glibc's. Swift's standard library refers to
// it.
#include <math.h>

__attribute__((visibility("hidden"))) float hypotf(float x, float y) {
  if (isinf(x) || isinf(y)) return INFINITY;  // also where the other one is no number
  // Squares of what a float holds neither overflow in a double nor vanish.
  return (float)sqrt((double)x * x + (double)y * y);
}
