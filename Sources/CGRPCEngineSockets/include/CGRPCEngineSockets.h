#pragma once

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/types.h>
#include <sys/uio.h>

/// What TCP_INFO tells of a socket, as far as it is asked for (tcp(7), linux/tcp.h, whose name for it is also that
/// of the C library's shorter one). A kernel that knows less leaves the end as it is, which is zero.
struct grpc_engine_tcp_info {
  uint8_t state;
  uint8_t congestion_state;
  /// How often what is next to be acknowledged has been sent again, in a row.
  uint8_t retransmits;
  /// How many probes of a shut window have been left unanswered, in a row.
  uint8_t probes;
  uint8_t unused[4];
  uint32_t unused_figures[12];
  /// Milliseconds since the last acknowledgement came.
  uint32_t last_ack_recv;
  uint32_t more_unused_figures[11];
  uint64_t unused_rates[2];
  /// Bytes that the peer's system has acknowledged.
  uint64_t bytes_acked;
};

// Descriptors in messages (unix(7), SCM_RIGHTS): the macros of cmsg(3) do not reach Swift.

/// Waits for a message of one byte with a descriptor.
///
/// Returns what recvmsg(2) does: 0 at the end, -1 with errno. The descriptor is closed on exec; it
/// is -1 where there was none, also because this process may open no more.
static inline ssize_t grpc_engine_receive_descriptor(int socket, int *descriptor) {
  char byte;
  struct iovec content = {.iov_base = &byte, .iov_len = sizeof(byte)};
  union {
    struct cmsghdr header;
    char space[CMSG_SPACE(sizeof(int))];
  } control;
  struct msghdr message = {
      .msg_iov = &content,
      .msg_iovlen = 1,
      .msg_control = control.space,
      .msg_controllen = sizeof(control.space),
  };
  *descriptor = -1;
  ssize_t result = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  if (result <= 0) return result;
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
      header->cmsg_len == CMSG_LEN(sizeof(int))) {
    memcpy(descriptor, CMSG_DATA(header), sizeof(int));
  }
  return result;
}

/// Sends what `grpc_engine_receive_descriptor` waits for. Returns what sendmsg(2) does.
static inline ssize_t grpc_engine_send_descriptor(int socket, int descriptor) {
  char byte = 0;
  struct iovec content = {.iov_base = &byte, .iov_len = sizeof(byte)};
  union {
    struct cmsghdr header;
    char space[CMSG_SPACE(sizeof(int))];
  } control;
  memset(&control, 0, sizeof(control));
  struct msghdr message = {
      .msg_iov = &content,
      .msg_iovlen = 1,
      .msg_control = control.space,
      .msg_controllen = sizeof(control.space),
  };
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
  return sendmsg(socket, &message, MSG_NOSIGNAL);
}

// How many descriptors there may be, and are: getrlimit(2) and eventfd(2) do not reach Swift as they
// are.

/// The number of descriptors that this process may open (RLIMIT_NOFILE), -1 for any.
static inline long long grpc_engine_descriptor_limit(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return -1;
  return (long long)limit.rlim_cur;
}

/// Makes the descriptor that costs least, or returns -1. The caller closes it.
static inline int grpc_engine_open_descriptor(void) { return eventfd(0, EFD_CLOEXEC); }

// What event loops are made of, to be tried: these do not reach Swift either. Each returns -1 with
// errno where it is refused; the caller closes what is opened.

static inline int grpc_engine_open_epoll(void) { return epoll_create1(EPOLL_CLOEXEC); }

static inline int grpc_engine_open_timer(void) {
  return timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
}

/// Has an epoll(7) instance know a descriptor, and wait for nothing but its errors.
static inline int grpc_engine_watch(int epoll, int descriptor) {
  struct epoll_event event = {.events = 0};
  return epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event);
}

static inline int grpc_engine_unwatch(int epoll, int descriptor) {
  struct epoll_event event = {.events = 0};
  return epoll_ctl(epoll, EPOLL_CTL_DEL, descriptor, &event);
}

/// What SwiftNIO is to hear of an error of accept(2): ECONNABORTED, after which it goes on, where the
/// connection failed and not the listening socket.
static inline int grpc_engine_accept_error(int code) {
  switch (code) {
    case EPERM:
    case EPROTO:
    case ENETDOWN:
    case ENOPROTOOPT:
    case EHOSTDOWN:
    case ENONET:
    case EHOSTUNREACH:
    case EOPNOTSUPP:
    case ENETUNREACH:
      return ECONNABORTED;
    default:
      return code;
  }
}
