"""Health as Django's settings have it: the server of the settings, test servers, the command."""

import os
import re
import subprocess
import sys

import grpc
import pytest
from django.core.exceptions import ImproperlyConfigured
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from harness import PATIENCE, listening, say_hello

from django_grpc import building, conf, health
from django_grpc.checks import check_configuration
from django_grpc.health.descriptor import health_file
from django_grpc_testtools.server import InProcessServer

from .support import NOT_SERVING, SERVING, Probe

HOOK = "sampleapp.servicer.grpc_hook"
GREETER = "helloworld.Greeter"


@pytest.fixture
def no_statuses():
    """Forget what a test sets."""
    with health.isolated():
        yield


@pytest.mark.parametrize("is_async", [False, True])
def test_server_of_the_settings_has_health(is_async, settings, no_statuses):
    settings.GRPCSERVER = {"servicers": [HOOK], "async": is_async}
    server = building.build_server(conf.load())
    assert server.health.is_served
    assert server.health.problem == ("checks", "the readiness checks have not passed yet")


def test_server_without_checks_is_ready_at_once(settings, no_statuses):
    settings.GRPCSERVER = {"servicers": [HOOK], "health": {"checks": []}}
    assert building.build_server(conf.load()).health.is_ready


def test_health_can_be_left_out(settings, started):
    settings.GRPCSERVER = {"servicers": [HOOK], "health": False}
    server = building.build_server(conf.load())
    assert not server.health.is_served
    probe = Probe(started(server))
    with pytest.raises(grpc.RpcError) as caught:
        probe.check()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_status_that_is_set_holds_for_every_server_of_the_process(settings, started, no_statuses):
    settings.GRPCSERVER = {"servicers": [HOOK], "health": {"checks": []}}
    health.set_status(GREETER, health.NOT_SERVING)  # before there is a server
    probes = [Probe(started(building.build_server(conf.load()))) for _ in range(2)]
    assert [probe.check(GREETER) for probe in probes] == [NOT_SERVING] * 2
    assert [probe.check() for probe in probes] == [SERVING] * 2
    health.set_status(GREETER, health_pb2.HealthCheckResponse.SERVING)
    assert [probe.check(GREETER) for probe in probes] == [SERVING] * 2
    with pytest.raises(ValueError, match="3 is not a valid ServingStatus"):
        health.set_status(GREETER, 3)


def test_status_of_what_is_no_name_is_refused_where_it_is_set(no_statuses):
    """And not when a server starts, far from whoever was wrong."""
    descriptor = health_pb2.DESCRIPTOR.services_by_name["Health"]
    for service in (None, descriptor, b"a.B"):
        with pytest.raises(
            TypeError, match=r"^set_status\(\) needs the full name .* not "
        ) as caught:
            health.set_status(service, health.SERVING)
        assert repr(service) in str(caught.value)
    with pytest.raises(UnicodeEncodeError):
        health.set_status("\udc80", health.SERVING)
    assert health._statuses == {}


def test_server_in_a_test_is_ready_at_once_and_leaves_no_status_behind():
    with InProcessServer() as server:
        probe = Probe(server.channel)
        assert probe.list() == {"": SERVING, GREETER: SERVING}
        health.set_status(GREETER, health.NOT_SERVING)
        assert probe.check(GREETER) == NOT_SERVING
    with InProcessServer() as server:
        assert Probe(server.channel).check(GREETER) == SERVING


@pytest.mark.django_db
def test_server_in_a_tests_transaction_has_health():
    with InProcessServer() as server:
        assert Probe(server.channel).check() == SERVING


@pytest.mark.parametrize(
    ("path", "check_id"),
    [
        ("sampleapp.nowhere.thing", "django_grpc.E013"),
        ("sampleapp.servicer.not_callable", "django_grpc.E014"),
        ("sampleapp.servicer.async_function", "django_grpc.E014"),
    ],
)
def test_check_that_cannot_be_run_is_a_mistake_of_the_settings(path, check_id, settings, start):
    settings.GRPCSERVER = {"servicers": [HOOK], "health": {"checks": [path]}}
    [message] = check_configuration(None)
    assert message.id == check_id
    assert f"GRPCSERVER['health']['checks']: '{path}'" in message.msg
    with pytest.raises(ImproperlyConfigured, match=r"GRPCSERVER\['health'\]\['checks'\]"):
        building.build_server(conf.load())
    process = start("--port", "0", health={"checks": [path]})
    assert process.wait() == 1
    assert f"CommandError: GRPCSERVER['health']['checks']: '{path}'" in process.output


def test_handlers_are_listed(start):
    process = start("--list-handlers")
    response = "(grpc.health.v1.HealthCheckResponse)"
    for line in (
        f"/grpc.health.v1.Health/Check: Check(request) unary_unary "
        f"(grpc.health.v1.HealthCheckRequest) -> {response} django_grpc.health",
        "/grpc.health.v1.Health/List: List(request) unary_unary ",
        "/grpc.health.v1.Health/Watch: Watch(request) unary_stream "
        "(grpc.health.v1.HealthCheckRequest) -> (stream grpc.health.v1.HealthCheckResponse)",
    ):
        process.wait_for(line.translate({ord(it): f"\\{it}" for it in "().*"}))


@pytest.mark.parametrize(
    ("arguments", "environment"), [(["--no-health"], {}), ([], {"GRPCSERVER_HEALTH": "off"})]
)
def test_health_can_be_left_out_of_the_command(arguments, environment, start):
    process = start("--port", "0", *arguments, environment=environment)
    with listening(process) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            Probe(channel).check()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_descriptor_is_that_of_the_proto():
    """But for the file's name, which is the one that other languages have."""
    expected = descriptor_pb2.FileDescriptorProto()
    health_pb2.DESCRIPTOR.CopyToProto(expected)
    ours = health_file()
    assert ours.name == "grpc/health/v1/health.proto"
    ours.name = expected.name
    assert ours == expected


def wait_for_line(process, pattern):
    """Wait until a line matches, whether it has been read already or not."""
    if not re.search(pattern, process.output):
        process.wait_for(pattern)


@pytest.fixture
def project(tmp_path, start):
    """A project with a database of its own, and what may be done to it."""
    return Project(tmp_path, start)


class Project:
    def __init__(self, folder, start):
        self.database = folder / "db.sqlite3"
        self._start = start
        self._environment = {"DJANGO_SETTINGS_MODULE": "database_settings"}
        (folder / "database_settings.py").write_text(
            "from process_settings import *\n\n"
            "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', "
            f"'NAME': {str(self.database)!r}}}}}\n"
        )
        self._folder = folder

    def start(self, *arguments, **setting):
        health = {"interval": 0.1, "timeout": PATIENCE}
        setting = {"health": health, **setting}
        return self._start("--port", "0", *arguments, environment=self._environment, **setting)

    def migrate(self):
        path = os.pathsep.join((str(self._folder), *sys.path))
        environment = {**os.environ, **self._environment, "PYTHONPATH": path}
        subprocess.run(
            [sys.executable, "-m", "django", "migrate", "--verbosity=0"],
            env=environment,
            check=True,
        )


@pytest.mark.parametrize("is_async", [False, True])
def test_server_is_ready_when_its_migrations_are_applied(is_async, project):
    process = project.start(**{"async": is_async})
    with listening(process) as channel:
        probe = Probe(channel)
        wait_for_line(
            process,
            r"The readiness check django_grpc\.health\.checks\.migrations failed: "
            r"migrations are not applied: \w+\.0001_initial, ",
        )
        assert probe.check(GREETER) == NOT_SERVING
        assert say_hello(channel) == "Hello, World!"
        project.migrate()
        probe.wait_for(SERVING)
        assert probe.check(GREETER) == SERVING


def test_database_that_goes_away_and_comes_back(project):
    process = project.start()
    project.migrate()
    with listening(process) as channel:
        probe = Probe(channel)
        probe.wait_for(SERVING)
        watch = probe.watch()
        assert watch.next() == SERVING
        away = project.database.with_suffix(".away")
        project.database.rename(away)
        project.database.mkdir()  # what SQLite can't open
        assert watch.next() == NOT_SERVING
        wait_for_line(
            process,
            r"The readiness check django_grpc\.health\.checks\.databases failed: "
            r"the database 'default' does not answer: unable to open database file",
        )
        project.database.rmdir()
        away.rename(project.database)
        assert watch.next() == SERVING
        watch.cancel()
