"""Server reflection v1 and v1alpha, asked by a client that has nothing but the answers.

https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2
from harness import PATIENCE
from sampleapp import extensions_pb2  # noqa: F401 - puts its descriptors in the pool

from django_grpc import building, conf

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"

Request = reflection_pb2.ServerReflectionRequest


@pytest.fixture(params=[V1, V1ALPHA])
def ask(request, settings, started):
    """Ask for one thing or several on one stream, in either version; returns the answers."""
    settings.GRPCSERVER = {"servicers": ["sampleapp.servicer.grpc_hook"], "reflection": True}
    channel = started(building.build_server(conf.load()))
    method = channel.stream_stream(
        f"/{request.param}/ServerReflectionInfo",
        request_serializer=Request.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )

    def ask(*requests):
        responses = list(method(iter(requests), timeout=PATIENCE))
        assert [it.original_request for it in responses] == list(requests)
        return responses if len(requests) > 1 else responses[0]

    return ask


def files_of(response):
    """The files of an answer, by name."""
    assert response.HasField("file_descriptor_response"), response
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in response.file_descriptor_response.file_descriptor_proto
    ]
    return {file.name: file for file in files}


def pool_of(files):
    """A pool that knows only what was answered; fails when an import is missing."""
    pool = descriptor_pool.DescriptorPool()
    added = set()

    def add(name):
        if name not in added:
            added.add(name)
            for dependency in files[name].dependency:
                add(dependency)
            pool.Add(files[name])

    for name in files:
        add(name)
    return pool


def test_services_are_listed(ask):
    response = ask(Request(list_services="*"))
    names = [service.name for service in response.list_services_response.service]
    assert names == ["grpc.health.v1.Health", V1, V1ALPHA, "helloworld.Greeter"]


@pytest.mark.parametrize(
    "symbol",
    [
        "helloworld.Greeter",
        "helloworld.Greeter.SayHelloToEach",
        "helloworld.HelloRequest",
        "helloworld.HelloRequest.Manner",
        "helloworld.HelloRequest.Manner.Tone",
    ],
)
def test_symbol_gives_its_file_with_all_imports(symbol, ask):
    files = files_of(ask(Request(file_containing_symbol=symbol)))
    assert set(files) == {"sampleapp/helloworld.proto", "google/protobuf/timestamp.proto"}
    service = pool_of(files).FindServiceByName("helloworld.Greeter")
    assert service.methods_by_name["SayHello"].input_type.full_name == "helloworld.HelloRequest"


@pytest.mark.parametrize("service", [V1, V1ALPHA])
def test_reflection_describes_itself(service, ask):
    """A client asks for each service that was listed, these two among them."""
    pool = pool_of(files_of(ask(Request(file_containing_symbol=service))))
    method = pool.FindServiceByName(service).methods_by_name["ServerReflectionInfo"]
    package = service.rpartition(".")[0]
    assert method.input_type.full_name == f"{package}.ServerReflectionRequest"
    assert method.output_type.full_name == f"{package}.ServerReflectionResponse"
    assert method.client_streaming
    assert method.server_streaming
    field = method.input_type.fields_by_name["file_containing_extension"]
    assert field.message_type.full_name == f"{package}.ExtensionRequest"
    assert [it.number for it in method.input_type.fields] == [1, 3, 4, 5, 6, 7]


def test_file_is_given_by_its_name(ask):
    files = files_of(ask(Request(file_by_filename="sampleapp/extensions.proto")))
    assert set(files) == {
        "sampleapp/extensions.proto",
        "sampleapp/helloworld.proto",
        "google/protobuf/timestamp.proto",
    }
    card = pool_of(files).FindMessageTypeByName("helloworld.extended.Card")
    assert card.fields_by_name["greeting"].message_type.full_name == "helloworld.HelloReply"


@pytest.mark.parametrize("number", [100, 150])
def test_extension_gives_its_file(number, ask):
    """One is declared at the top of the file, the other in a message."""
    extension = reflection_pb2.ExtensionRequest(
        containing_type="helloworld.extended.Card", extension_number=number
    )
    files = files_of(ask(Request(file_containing_extension=extension)))
    assert "sampleapp/extensions.proto" in files


def test_extension_numbers_are_listed(ask):
    response = ask(Request(all_extension_numbers_of_type="helloworld.extended.Card"))
    answer = response.all_extension_numbers_response
    assert answer.base_type_name == "helloworld.extended.Card"
    assert sorted(answer.extension_number) == [100, 150]


def test_message_without_extensions_has_no_numbers(ask):
    name = f"{V1.rpartition('.')[0]}.ServerReflectionRequest"
    response = ask(Request(all_extension_numbers_of_type=name))
    assert response.HasField("all_extension_numbers_response")
    assert list(response.all_extension_numbers_response.extension_number) == []


@pytest.mark.parametrize(
    "request_",
    [
        Request(file_by_filename="no/such.proto"),
        Request(file_containing_symbol="helloworld.Nothing"),
        Request(file_containing_symbol="helloworld.Greeter.Nothing"),
        Request(all_extension_numbers_of_type="helloworld.Nothing"),
        Request(
            file_containing_extension=reflection_pb2.ExtensionRequest(
                containing_type="helloworld.extended.Card", extension_number=101
            )
        ),
        Request(
            file_containing_extension=reflection_pb2.ExtensionRequest(
                containing_type="helloworld.Nothing", extension_number=100
            )
        ),
    ],
    ids=lambda request: request.WhichOneof("message_request"),
)
def test_what_does_not_exist_is_not_found_and_the_stream_goes_on(request_, ask):
    missing, listed = ask(request_, Request(list_services=""))
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert missing.error_response.error_message
    assert listed.HasField("list_services_response")


def test_request_for_nothing_is_invalid(ask):
    response = ask(Request(host="example.org"))
    assert response.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_reflection_is_off_unless_the_setting_asks_for_it(settings, started):
    settings.GRPCSERVER = {"servicers": ["sampleapp.servicer.grpc_hook"]}
    channel = started(building.build_server(conf.load()))
    for service in (V1, V1ALPHA):
        with pytest.raises(grpc.RpcError) as caught:
            list(
                channel.stream_stream(f"/{service}/ServerReflectionInfo")(
                    iter([b""]), timeout=PATIENCE
                )
            )
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_generated_code_of_a_project_for_v1_can_still_be_imported(settings):
    """The v1 file isn't put into the pool that generated code registers with."""
    settings.GRPCSERVER = {"servicers": ["sampleapp.servicer.grpc_hook"], "reflection": True}
    building.build_server(conf.load())
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName("grpc/reflection/v1/reflection.proto")
