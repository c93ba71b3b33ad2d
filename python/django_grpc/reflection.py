"""Server reflection, v1 and v1alpha.

Clients such as grpcurl ask a server for its services and their descriptors
(https://grpc.io/docs/guides/reflection/). The answers come from grpcio-reflection, which has the
v1alpha service only. The messages of v1 are the same on the wire under another package
(https://github.com/grpc/grpc-proto/blob/master/grpc/reflection/v1/reflection.proto), so the same
servicer serves both.
"""

from collections.abc import Iterable
from typing import Any

import grpc
from django.core.exceptions import ImproperlyConfigured
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor

from django_grpc.health.descriptor import health_file

try:
    from grpc_reflection.v1alpha import reflection, reflection_pb2
except ImportError as error:
    raise ImproperlyConfigured(
        "GRPCSERVER['reflection'] needs the package grpcio-reflection: "
        "install it, or leave the key out."
    ) from error

_ALPHA_PACKAGE = "grpc.reflection.v1alpha"
_PACKAGE = "grpc.reflection.v1"
SERVICE_NAMES = (f"{_PACKAGE}.ServerReflection", f"{_ALPHA_PACKAGE}.ServerReflection")


def register(server: Any, service_names: Iterable[str]) -> None:
    """Add both reflection services to a server that hasn't started.

    Args:
        server: A `grpc.Server` or an object with its methods.
        service_names: Full names of the services to list; the two reflection services are added.
    """
    servicer = reflection.ReflectionServicer(
        {*service_names, *SERVICE_NAMES}, pool=_Descriptors(descriptor_pool.Default())
    )
    for service_name in SERVICE_NAMES:
        handlers = {
            "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
                servicer.ServerReflectionInfo,
                request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
                response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
            )
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service_name, handlers),)
        )
        server.add_registered_method_handlers(service_name, handlers)


class _Descriptors:
    """The part of a descriptor pool that the servicer uses: the pool, and beside it two files.

    They describe reflection v1 and the health service, for which no code need be generated. They
    are not added to the pool itself. A project that has generated code for one would then fail to
    import that, as a pool takes a file name only once.
    """

    def __init__(self, pool: descriptor_pool.DescriptorPool) -> None:
        own = descriptor_pool.DescriptorPool()
        for file in (_v1_file(), health_file()):
            own.AddSerializedFile(file.SerializeToString())
        self._pools = (pool, own)

    def _first(self, find: str, name: str) -> Any:
        for pool in self._pools:
            try:
                return getattr(pool, find)(name)
            except KeyError:
                continue
        raise KeyError(name)

    # The names are a descriptor pool's.

    def FindFileByName(self, file_name: str) -> FileDescriptor:  # noqa: N802
        file: FileDescriptor = self._first("FindFileByName", file_name)
        return file

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802
        try:
            file: FileDescriptor = self._first("FindFileContainingSymbol", symbol)
        except KeyError:
            # Methods are symbols to the specification and not to every protobuf runtime.
            file = self._first("FindMethodByName", symbol).containing_service.file
        return file

    def FindMessageTypeByName(self, full_name: str) -> Descriptor:  # noqa: N802
        message: Descriptor = self._first("FindMessageTypeByName", full_name)
        return message

    def FindExtensionByNumber(self, message: Descriptor, number: int) -> FieldDescriptor:  # noqa: N802
        return message.file.pool.FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Descriptor) -> list[FieldDescriptor]:  # noqa: N802
        return message.file.pool.FindAllExtensions(message)


def _v1_file() -> descriptor_pb2.FileDescriptorProto:
    """Derive the v1 file from the v1alpha one, which differs from it in names only."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = _PACKAGE
    file.options.Clear()
    file.options.go_package = "google.golang.org/grpc/reflection/grpc_reflection_v1"
    file.options.java_multiple_files = True
    file.options.java_package = "io.grpc.reflection.v1"
    file.options.java_outer_classname = "ServerReflectionProto"
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(_ALPHA_PACKAGE, _PACKAGE)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(_ALPHA_PACKAGE, _PACKAGE)
            method.output_type = method.output_type.replace(_ALPHA_PACKAGE, _PACKAGE)
    return file
