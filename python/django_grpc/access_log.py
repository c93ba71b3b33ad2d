"""The access log: one line a call, by the logger ``django_grpc.access``."""

import functools
import json
import logging
from datetime import UTC, datetime
from typing import Any

import grpc

from django_grpc import conf
from django_grpc.engine.call_log import CallRecord
from django_grpc.logs import GuardedLogger

LOGGER = "django_grpc.access"

_STATUSES = {code.value[0]: code.name for code in grpc.StatusCode}

# Methods whose names are kept as they are written; strangers may ask for any number of others.
_METHODS = 1024


class AccessLog:
    """Writes calls to the log, in batches, on the thread that gives them.

    Each is a record of level INFO, as of the end of the call. Beside its text it has the call's
    facts as attributes, for formatters: ``method``, ``peer``, ``status``, ``started`` (seconds
    since 1970), ``duration`` and ``queue_wait`` (seconds; the latter None for a call that never
    ran), ``messages_in``, ``bytes_in``, ``messages_out``, ``bytes_out``, and where queries are
    counted ``sql_count`` and ``sql_time`` (seconds).
    """

    def __init__(self, config: conf.AccessLog) -> None:
        """Prepare the log; see `prepare_logger` for who reads it."""
        self._logger = logging.getLogger(LOGGER)
        self._guarded = GuardedLogger(LOGGER)
        self._has_sql = config.sql
        self._text = as_json if config.format == "json" else as_text

    def write(self, calls: list[CallRecord], dropped: int) -> None:
        """Log calls, and that others were dropped.

        Raises:
            BaseException: What the project's handlers raised for one of the calls; the others have
                been written.
        """
        if dropped:
            self._guarded.warning("%d calls were not logged: the log could not keep up", dropped)
        if not self._logger.isEnabledFor(logging.INFO):
            return
        failure: BaseException | None = None
        for call in calls:
            try:
                self._log(call)
            except BaseException as error:
                failure = error
        if failure is not None:
            raise failure

    def _log(self, call: CallRecord) -> None:
        facts = self._facts(call)
        record = self._logger.makeRecord(
            LOGGER, logging.INFO, __file__, 0, self._text(facts), (), None, "write", facts
        )
        record.created = ended = call.started + call.duration
        record.msecs = int(ended % 1 * 1000) + 0.0  # as logging itself has it
        self._logger.handle(record)

    def _facts(self, call: CallRecord) -> dict[str, Any]:
        facts = {
            "method": call.method,
            "peer": call.peer,
            "status": _STATUSES.get(call.code, str(call.code)),
            "started": call.started,
            "duration": call.duration,
            "queue_wait": call.queue_wait,
            "messages_in": call.messages_in,
            "bytes_in": call.bytes_in,
            "messages_out": call.messages_out,
            "bytes_out": call.bytes_out,
        }
        if self._has_sql:
            facts["sql_count"] = call.queries
            facts["sql_time"] = call.query_time
        return facts


def as_text(facts: dict[str, Any]) -> str:
    """Write a call as a line for people."""
    wait = facts["queue_wait"]
    line = (
        f"{_printable(facts['method'])} {facts['status']} {facts['duration'] * 1e3:.1f}ms "
        f"peer={facts['peer']} wait={'-' if wait is None else f'{wait * 1e3:.1f}ms'} "
        f"in={facts['messages_in']}/{facts['bytes_in']}B "
        f"out={facts['messages_out']}/{facts['bytes_out']}B"
    )
    if "sql_count" in facts:
        line += f" sql={facts['sql_count']}/{facts['sql_time'] * 1e3:.1f}ms"
    return line


def as_json(facts: dict[str, Any]) -> str:
    """Write a call as a JSON object. Times are seconds, ``time`` is when it came (ISO 8601)."""
    wait = facts["queue_wait"]
    second, part = divmod(facts["started"], 1)
    text = (
        f'{{"time": "{_second(int(second))}.{int(part * 1000):03}+00:00", '
        f'"method": {_quoted(facts["method"])}, '
        f'"peer": {_quoted(facts["peer"])}, "status": "{facts["status"]}", '
        f'"duration": {facts["duration"]:.6f}, '
        f'"queue_wait": {"null" if wait is None else f"{wait:.6f}"}, '
        f'"messages_in": {facts["messages_in"]}, "bytes_in": {facts["bytes_in"]}, '
        f'"messages_out": {facts["messages_out"]}, "bytes_out": {facts["bytes_out"]}'
    )
    if "sql_count" in facts:
        text += f', "sql_count": {facts["sql_count"]}, "sql_time": {facts["sql_time"]:.6f}'
    return text + "}"


@functools.lru_cache(maxsize=_METHODS)
def _printable(method: str) -> str:
    """Keep a path that a client made up from breaking its line."""
    return method if method.isprintable() and " " not in method else repr(method)


@functools.lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


_quoted = functools.lru_cache(maxsize=_METHODS)(json.dumps)


def prepare_logger(config: conf.AccessLog) -> None:
    """Have the lines come out somewhere, unless the project's `LOGGING` says where.

    A logger without a level gets INFO: who asks for the access log wants to see it. Without a
    handler, on it or above it, it gets one for standard error.
    """
    logger = logging.getLogger(LOGGER)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        text = "%(message)s" if config.format == "json" else "%(asctime)s %(message)s"
        handler.setFormatter(logging.Formatter(text))
        logger.addHandler(handler)


def attach(server: Any, config: conf.AccessLog) -> None:
    """Have a server that hasn't started log its calls."""
    prepare_logger(config)
    server.log_calls(AccessLog(config).write, sample=config.sample, slow=config.slow)
