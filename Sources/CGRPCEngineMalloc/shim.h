// glibc's allocator settings; Swift's Glibc module leaves malloc.h out.
#if defined(__linux__)
#include <malloc.h>
#include <stdlib.h>

/// Frees a block at the top of the calling thread's arena, after which glibc returns the top to the
/// kernel where it is larger than M_TRIM_THRESHOLD; `malloc_trim` does so for the main arena only.
static inline void grpc_engine_touch_arena_top(size_t size) {
  volatile char *block = (volatile char *)malloc(size);
  if (block == NULL) return;
  block[0] = 1;
  free((void *)block);
}
#endif
