"""The descriptor of ``grpc.health.v1``, which needs no generated code.

The file is
https://github.com/grpc/grpc-proto/blob/master/grpc/health/v1/health.proto.
"""

from __future__ import annotations

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    EnumValueDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileOptions,
    MessageOptions,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

_PACKAGE = "grpc.health.v1"
_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


def health_file() -> FileDescriptorProto:
    """Return the file's descriptor."""
    return FileDescriptorProto(
        name="grpc/health/v1/health.proto",
        package=_PACKAGE,
        syntax="proto3",
        message_type=[
            DescriptorProto(
                name="HealthCheckRequest",
                field=[_field("service", 1, FieldDescriptorProto.TYPE_STRING)],
            ),
            DescriptorProto(
                name="HealthCheckResponse",
                field=[
                    _field(
                        "status",
                        1,
                        FieldDescriptorProto.TYPE_ENUM,
                        f".{_PACKAGE}.HealthCheckResponse.ServingStatus",
                    )
                ],
                enum_type=[
                    EnumDescriptorProto(
                        name="ServingStatus",
                        value=[
                            EnumValueDescriptorProto(name=name, number=number)
                            for number, name in enumerate(_STATUSES)
                        ],
                    )
                ],
            ),
            DescriptorProto(name="HealthListRequest"),
            DescriptorProto(
                name="HealthListResponse",
                field=[
                    _field(
                        "statuses",
                        1,
                        FieldDescriptorProto.TYPE_MESSAGE,
                        f".{_PACKAGE}.HealthListResponse.StatusesEntry",
                        FieldDescriptorProto.LABEL_REPEATED,
                    )
                ],
                nested_type=[
                    DescriptorProto(
                        name="StatusesEntry",
                        field=[
                            _field("key", 1, FieldDescriptorProto.TYPE_STRING),
                            _field(
                                "value",
                                2,
                                FieldDescriptorProto.TYPE_MESSAGE,
                                f".{_PACKAGE}.HealthCheckResponse",
                            ),
                        ],
                        options=MessageOptions(map_entry=True),
                    )
                ],
            ),
        ],
        service=[
            ServiceDescriptorProto(
                name="Health",
                method=[
                    _method("Check", "HealthCheckRequest", "HealthCheckResponse"),
                    _method("List", "HealthListRequest", "HealthListResponse"),
                    _method("Watch", "HealthCheckRequest", "HealthCheckResponse", streams=True),
                ],
            )
        ],
        options=FileOptions(
            java_package="io.grpc.health.v1",
            java_outer_classname="HealthProto",
            java_multiple_files=True,
            go_package="google.golang.org/grpc/health/grpc_health_v1",
            objc_class_prefix="GrpcHealthV1",
            csharp_namespace="Grpc.Health.V1",
        ),
    )


def _field(
    name: str,
    number: int,
    kind: FieldDescriptorProto.Type.ValueType,
    type_name: str | None = None,
    label: FieldDescriptorProto.Label.ValueType = FieldDescriptorProto.LABEL_OPTIONAL,
) -> FieldDescriptorProto:
    return FieldDescriptorProto(
        name=name, number=number, type=kind, type_name=type_name, label=label
    )


def _method(name: str, request: str, response: str, streams: bool = False) -> MethodDescriptorProto:
    return MethodDescriptorProto(
        name=name,
        input_type=f".{_PACKAGE}.{request}",
        output_type=f".{_PACKAGE}.{response}",
        server_streaming=streams or None,
    )
