"""`manage.py check` on settings.GRPCSERVER."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core import checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings

from django_grpc.checks import check_configuration

HOOK = "sampleapp.servicer.grpc_hook"


def messages_of(setting):
    with override_settings(GRPCSERVER=setting):
        return check_configuration(None)


def test_good_setting_passes():
    assert messages_of({"servicers": [HOOK]}) == []


@pytest.mark.parametrize("setting", [None, {}, {"servicers": []}])
def test_server_without_servicers_is_warned_about(setting):
    [message] = messages_of(setting)
    assert (message.id, message.level) == ("django_grpc.W001", checks.WARNING)
    assert "no servicers" in message.msg


def test_mistake_becomes_an_error_with_its_hint():
    [message] = messages_of({"servicer": [HOOK]})
    assert message.level == checks.ERROR
    assert message.id == "django_grpc.E002"
    assert message.msg == "GRPCSERVER has no key 'servicer'."
    assert message.hint == "Did you mean 'servicers'?"


def test_each_mistake_is_reported():
    messages = messages_of({"servicers": HOOK, "async": 1, "grace": "long"})
    assert [message.id for message in messages] == [
        "django_grpc.E003",
        "django_grpc.E008",
        "django_grpc.E011",
    ]
    assert all(message.hint for message in messages)


@pytest.mark.parametrize("key", ["servicers", "interceptors"])
@pytest.mark.parametrize(
    ("path", "check_id"),
    [
        ("sampleapp.nowhere.thing", "django_grpc.E013"),
        ("sampleapp.servicer.not_callable", "django_grpc.E014"),
        ("sampleapp.servicer.async_function", "django_grpc.E014"),
        ("sampleapp.servicer.async_callable", "django_grpc.E014"),
        ("sampleapp.servicer.generator_function", "django_grpc.E014"),
    ],
)
def test_path_that_fails_is_reported(key, path, check_id):
    [message] = messages_of({"servicers": [HOOK], key: [path]})
    assert message.id == check_id
    assert f"GRPCSERVER['{key}']: '{path}'" in message.msg
    assert message.hint


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import not_there", "No module named 'not_there'"),
        ("from os import not_there", "cannot import name 'not_there'"),
        ("raise ValueError('no such table: x')", "ValueError: no such table: x"),
        ("import os; os.nothing", "AttributeError: module 'os' has no attribute 'nothing'"),
        ("import sys; sys.exit(3)", "its module calls sys.exit(3)"),
    ],
)
def test_module_that_fails_is_warned_about(code, said, tmp_path, monkeypatch):
    """The command that mends it, such as migrate, runs the checks too."""
    (tmp_path / "failing_hooks.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    [message] = messages_of({"servicers": ["failing_hooks.hook"]})
    assert (message.id, message.level) == ("django_grpc.W004", checks.WARNING)
    assert said in message.msg
    assert "GRPCSERVER['servicers']: 'failing_hooks.hook'" in message.msg


def test_file_that_cannot_be_read_is_warned_about(tmp_path):
    """A warning: keys are often mounted at run time only."""
    key = tmp_path / "key.pem"
    key.write_text("a key")
    missing = tmp_path / "missing.pem"
    [message] = messages_of(
        {
            "servicers": [HOOK],
            "credentials": [{"private_key": str(key), "certificate_chain": str(missing)}],
        }
    )
    assert (message.id, message.level) == ("django_grpc.W002", checks.WARNING)
    assert f"'{missing}' can't be read: No such file or directory." in message.msg


def test_the_other_distribution_is_warned_about(tmp_path, monkeypatch):
    information = tmp_path / "django_grpc-1.2.20.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: django-grpc\nVersion: 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    [message] = messages_of({"servicers": [HOOK]})
    assert (message.id, message.level) == ("django_grpc.W003", checks.WARNING)
    assert "pip uninstall django-grpc" in message.hint


@pytest.mark.usefixtures("databases_allowed")
def test_checks_are_registered():
    with (
        override_settings(GRPCSERVER={"servicer": []}),
        pytest.raises(SystemCheckError, match=r"django_grpc\.E002"),
    ):
        call_command("check")


def test_checks_do_not_load_the_engine():
    """Every manage.py command runs the checks, and few of them serve."""
    program = (
        "import os, sys, django\n"
        "os.environ['DJANGO_SETTINGS_MODULE'] = 'settings'\n"
        "django.setup()\n"
        "from django.core.management import call_command\n"
        "from django.test import override_settings\n"
        "with override_settings(GRPCSERVER={'reflection': True}):\n"
        "    call_command('check', verbosity=0)\n"
        "print([name for name in sys.modules if name.startswith('django_grpc.engine')])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert result.stdout.splitlines()[-1] == "[]"
