import CGRPCEngineSockets
import Glibc
import Testing

struct AcceptErrorTests {
  @Test(
    "What accept(2) says of a connection that has failed is no error of the listening socket",
    arguments: [
      EPERM, EPROTO, ENETDOWN, ENOPROTOOPT, EHOSTDOWN, ENONET, EHOSTUNREACH, EOPNOTSUPP,
      ENETUNREACH, ECONNABORTED,
    ]
  )
  func ofTheConnection(code: CInt) {
    #expect(grpc_engine_accept_error(code) == ECONNABORTED)
  }

  @Test(
    "Other errors of accept(2) stay as they are",
    arguments: [EAGAIN, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, EBADF, EINVAL]
  )
  func others(code: CInt) {
    #expect(grpc_engine_accept_error(code) == code)
  }
}
