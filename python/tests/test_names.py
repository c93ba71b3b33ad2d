"""The public names of django-grpc 1.2.20: projects import them, and tests patch them."""

import importlib

import pytest

NAMES = {
    "django_grpc.apps": ["DjangoGrpcConfig"],
    "django_grpc.helpers": ["ratelimit"],
    "django_grpc.helpers.ratelimit": [
        "create_cache_key",
        "get_current_time_window",
        "get_keys_values",
        "ratelimit",
        "record_call",
        "save_call",
    ],
    "django_grpc.management.commands.grpcserver": [
        "Command.add_arguments",
        "Command.handle",
        "Command.help",
        # Its own tests patch these.
        "asyncio.new_event_loop",
        "autoreload.run_with_reloader",
        "create_server",
        "datetime",
        "extract_handlers",
        "grpc_shutdown",
        "settings",
        "signal.signal",
        "threading",
        "time.sleep",
    ],
    "django_grpc.models": [],
    "django_grpc.serializers": [
        "BaseModelSerializer",
        "deserialize_message",
        "message_to_python",
        "serialize_model",
    ],
    "django_grpc.serializers.base": [
        "BaseModelSerializer._get_field_value",
        "BaseModelSerializer._serialize_model_relations",
        "BaseModelSerializer._to_dict",
        "BaseModelSerializer.find_for_model",
        "BaseModelSerializer.get_grpc_message_class",
        "BaseModelSerializer.serialize_model",
        "message_to_python",
    ],
    "django_grpc.signals": [
        "close_old_connections",
        "grpc_got_request_exception",
        "grpc_request_finished",
        "grpc_request_started",
        "grpc_shutdown",
        "reset_queries",
    ],
    "django_grpc.signals.wrapper": [
        "SignalWrapper.METHOD_PROPERTIES",
        "SignalWrapper.add_generic_rpc_handlers",
        "SignalWrapper.add_registered_method_handlers",
    ],
    "django_grpc.utils": [
        "add_servicers",
        "create_server",
        "enable_reflection",
        "extract_handlers",
        "load_interceptors",
        "logger",
    ],
    "django_grpc_testtools.context": [
        "DEFAULT_TIME_REMAINING",
        "FakeServicerContext.abort",
        "FakeServicerContext.abort_code",
        "FakeServicerContext.abort_with_status",
        "FakeServicerContext.aborted",
        "FakeServicerContext.add_callback",
        "FakeServicerContext.auth_context",
        "FakeServicerContext.cancel",
        "FakeServicerContext.clear",
        "FakeServicerContext.code",
        "FakeServicerContext.details",
        "FakeServicerContext.disable_next_message_compression",
        "FakeServicerContext.get_trailing_metadata",
        "FakeServicerContext.invocation_metadata",
        "FakeServicerContext.is_active",
        "FakeServicerContext.peer",
        "FakeServicerContext.peer_identities",
        "FakeServicerContext.peer_identity_key",
        "FakeServicerContext.send_initial_metadata",
        "FakeServicerContext.set_code",
        "FakeServicerContext.set_compression",
        "FakeServicerContext.set_details",
        "FakeServicerContext.set_invocation_metadata",
        "FakeServicerContext.set_time_remaining",
        "FakeServicerContext.set_trailing_metadata",
        "FakeServicerContext.time_remaining",
        "MetadataType",
    ],
    "django_grpc_testtools.executor": [
        "GRPCServerForTests.addr",
        "GRPCServerForTests.flat_params",
        "GRPCServerForTests.start",
        "GRPCServerForTests.stop",
    ],
}


@pytest.mark.parametrize("module", NAMES)
def test_names_of_django_grpc_are_there(module):
    found = importlib.import_module(module)
    for name in NAMES[module]:
        value = found
        for part in name.split("."):
            assert hasattr(value, part), name
            value = getattr(value, part)


def test_names_that_neither_has_are_not_there():
    from django_grpc.management.commands import grpcserver

    assert not hasattr(grpcserver, "create_servers")


def test_command_can_be_patched_and_mended_again(monkeypatch):
    from django_grpc import utils
    from django_grpc.management.commands import grpcserver

    with monkeypatch.context() as patch:
        patch.setattr("django_grpc.management.commands.grpcserver.create_server", None)
        assert grpcserver.create_server is None
    assert grpcserver.create_server is utils.create_server
