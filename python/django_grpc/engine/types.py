"""Names for grpcio's types, which are generic in their stubs only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

__all__ = [
    "AsyncServicerContext",
    "GenericHandler",
    "Interceptor",
    "MethodHandler",
    "ServiceHandler",
]
