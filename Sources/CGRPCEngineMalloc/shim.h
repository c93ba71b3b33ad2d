// glibc's allocator settings; Swift's Glibc module leaves malloc.h out.
#if defined(__linux__)
#include <malloc.h>
#endif
