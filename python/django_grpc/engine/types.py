"""Names for grpcio's types, which are generic in their stubs only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import grpc
import grpc.aio

if TYPE_CHECKING:
    MethodHandler = grpc.RpcMethodHandler[Any, Any]
    GenericHandler = grpc.GenericRpcHandler[Any, Any]
    ServiceHandler = grpc.ServiceRpcHandler[Any, Any]
    Interceptor = grpc.ServerInterceptor[Any, Any]
    AsyncServicerContext = grpc.aio.ServicerContext[Any, Any]
else:
    MethodHandler = grpc.RpcMethodHandler
    GenericHandler = grpc.GenericRpcHandler
    ServiceHandler = grpc.ServiceRpcHandler
    Interceptor = grpc.ServerInterceptor
    AsyncServicerContext = grpc.aio.ServicerContext


class Surroundings(Protocol):
    """What is to be done before and after everything that runs for a call.

    None of these may raise, and none may wait for a peer: the code of a call waits for them.
    """

    def start(self) -> None:
        """Be called on a thread of the server's own that will run calls, when it begins."""

    def enter(self) -> None:
        """Be called on a thread that is about to run code of a call, or to log something of calls.

        Not where nothing but a registered method runs, on a worker thread: it surrounds itself.
        """

    def leave(self) -> None:
        """Be called on that thread when it has run the code, the last thing."""

    def begin(self) -> None:
        """Be called in the task of a call on a loop, the first thing."""

    def end(self) -> None:
        """Be called in that task, the last thing; elsewhere when it was cancelled too early."""


__all__ = [
    "AsyncServicerContext",
    "GenericHandler",
    "Interceptor",
    "MethodHandler",
    "ServiceHandler",
    "Surroundings",
]
