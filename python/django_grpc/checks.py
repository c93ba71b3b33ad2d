"""`manage.py check`: the mistakes in `settings.GRPCSERVER`, before a server is started.

Ids, all with the label ``django_grpc``:

* E001 not a dictionary; E002 an unknown key;
* E003 ``servicers``, E004 ``interceptors``, E005 ``maximum_concurrent_rpcs``, E006 ``options``,
  E007 ``credentials``, E008 ``async``, E009 ``reflection``, E010 ``max_workers``, E011 ``grace``,
  E012 ``host``: a value that can't be;
* E013 a servicer, an interceptor or a health check that can't be imported; E014 one that can't be
  called, or of which a call would run nothing;
* E015 ``drain_delay``, E016 ``max_connections``, E017 ``workers``, E018 ``worker_max_calls``, E019
  ``worker_max_calls_jitter``, E020 ``worker_max_age``, E021 ``worker_max_memory``, E022 ``health``,
  E023 ``metrics``, E024 ``access_log``, E025 ``watchdog``, E026 ``methods``, E027
  ``opentelemetry``, E028 ``worker_timeout``, E029 ``worker_start_timeout``, E030 ``port``, E031
  ``pidfile``: a value that can't be, or a package that is missing;
* W001 no servicers; W002 a file of ``credentials`` that can't be read; W003 the distribution
  django-grpc is installed beside this one; W004 a servicer, an interceptor or a health check whose
  module fails while it is imported.

W002 is a warning because keys are often mounted at run time only, and checks also run while an
image is built. So is W004, because they also run before the command that mends it: ``migrate``,
where a module asks the database for its choices, or one that generates code.
"""

import os
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning

from django_grpc import conf, tracing
from django_grpc.logs import class_name_of, text_of


def check_configuration(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    """Check `settings.GRPCSERVER`; registered by the application when Django starts."""
    config, problems = conf.parse(getattr(settings, conf.SETTING, None), os.environ)
    if config is None:
        return [*_check_distributions(), *map(_error, problems)]
    return [
        *_check_distributions(),
        *_check_imports("servicers", config.servicers),
        *_check_imports("interceptors", config.interceptors),
        *_check_imports("health.checks", config.health.checks if config.health else ()),
        *_check_servicers(config.servicers),
        *_check_files(config.credentials),
        *map(_error, filter(None, [tracing.find_problem(config)])),
    ]


def _error(problem: conf.Problem) -> CheckMessage:
    kind = Warning if problem.code.startswith("W") else Error
    return kind(problem.message, hint=problem.hint, id=f"django_grpc.{problem.code}")


def _check_distributions() -> list[CheckMessage]:
    try:
        metadata.distribution("django-grpc")
    except metadata.PackageNotFoundError:
        return []
    return [
        Warning(
            "django-grpc and django-grpc-swift are both installed, with files of the same names.",
            hint="Run `pip uninstall django-grpc`, which takes such files along, and then install "
            "django-grpc-swift again with `pip install --force-reinstall --no-deps`.",
            id="django_grpc.W003",
        )
    ]


def _check_imports(key: str, paths: tuple[str, ...]) -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    for path in paths:
        try:
            conf.import_configured(key, path)
        except conf.InvalidSetting as error:
            messages.append(_error(error.problem))
        except Exception as error:
            what = class_name_of(error)
            if text := text_of(error):
                what = f"{what}: {text}"
            messages.append(
                Warning(
                    f"{conf.SETTING}['{key}']: '{path}' can't be imported: {what}",
                    hint="The server won't start with it.",
                    id="django_grpc.W004",
                )
            )
    return messages


def _check_servicers(paths: tuple[str, ...]) -> list[CheckMessage]:
    if paths:
        return []
    return [
        Warning(
            f"{conf.SETTING} names no servicers, so a server would answer no call.",
            hint=f"Write {conf.SETTING} = {{'servicers': ['myproject.servicers.grpc_hook']}}.",
            id="django_grpc.W001",
        )
    ]


def _check_files(credentials: conf.Credentials | None) -> list[CheckMessage]:
    if credentials is None:
        return []
    messages: list[CheckMessage] = []
    for path in credentials.paths():
        try:
            open(path, "rb").close()
        except OSError as error:
            messages.append(
                Warning(
                    f"{conf.SETTING}['credentials']: '{path}' can't be read: {error.strerror}.",
                    hint="The server won't start without it.",
                    id="django_grpc.W002",
                )
            )
    return messages
