// No descriptor of the engine's may reach a program that a servicer starts: it would hold a client's
// connection open after this process has gone. Python sees to its own (PEP 446), and what the engine
// opens itself is closed on exec; SwiftNIO accepts connections and makes its epoll instances without
// that flag, and has no setting for it. To set it afterwards would leave a gap, in which another
// thread may fork.
//
// So these two stand in for glibc's functions of the same name, for what is linked into this library
// alone: they are hidden, the rest of the process keeps glibc's.
//
// accept(2) reports what became of the connection that it was to take, too, and asks servers to go on
// to the next one then. SwiftNIO closes the listening socket for some of these errors.
#define _GNU_SOURCE
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "CGRPCEngineSockets.h"

// The thread sanitizer's own stand-ins see what passes through a descriptor; with ours it would not.
#if !__has_feature(thread_sanitizer)

__attribute__((visibility("hidden"))) int accept4(
    int descriptor, struct sockaddr *address, socklen_t *length, int flags) {
  int result = (int)syscall(SYS_accept4, descriptor, address, length, flags | SOCK_CLOEXEC);
  if (result < 0) errno = grpc_engine_accept_error(errno);
  return result;
}

__attribute__((visibility("hidden"))) int epoll_create(int size) {
  (void)size;  // without a meaning since Linux 2.6.8, see epoll_create(2)
  return epoll_create1(EPOLL_CLOEXEC);
}

#endif
