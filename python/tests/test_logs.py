"""Log lines that keep nobody from what must happen."""

import threading

import pytest
from harness import PATIENCE
from log_handlers import odd_handler

from django_grpc import log_lines, logs
from django_grpc.log_lines import LogLineThread
from django_grpc.logs import GuardedLogger

NAME = "django_grpc.tested"


@pytest.fixture
def lines():
    with odd_handler(NAME) as handler:
        yield handler


@pytest.mark.parametrize("failure", [ValueError(), SystemExit(), GeneratorExit()])
def test_what_handlers_raise_costs_the_line(lines, failure, capsys):
    logger = GuardedLogger(NAME)
    lines.failure = failure
    logger.error("one")
    assert type(failure).__name__ in capsys.readouterr().err
    lines.failure = None
    logger.warning("%s", "two", extra={"mine": 1})
    assert lines.texts == ["one", "two"]
    assert lines.records[1].mine == 1
    assert lines.records[1].funcName == "test_what_handlers_raise_costs_the_line"
    assert not logs.are_under_way()


def test_interrupt_of_the_main_thread_passes(lines):
    lines.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        GuardedLogger(NAME).error("one")


def test_handler_that_has_not_returned_is_known(lines):
    lines.gate.clear()
    thread = threading.Thread(target=GuardedLogger(NAME).info, args=("one",))
    thread.start()
    assert lines.entered.wait(PATIENCE)
    assert logs.are_under_way()
    lines.gate.set()
    thread.join(PATIENCE)
    assert not logs.are_under_way()


class UnspeakableError(Exception):
    def __str__(self):
        raise SystemExit

    def __bool__(self):
        raise ValueError


def test_exception_whose_methods_raise_is_logged(lines):
    error = UnspeakableError()
    assert logs.text_of(error) == ""
    assert logs.class_name_of(error) == "UnspeakableError"
    GuardedLogger(NAME).error("one", exc_info=logs.exc_info_of(error))
    assert lines.records[0].exc_info == (UnspeakableError, error, None)


def relieved(lines_of, write):
    """Have a thread that is relieved write lines; return when it has."""

    def run():
        logs.relieve_this_thread(lines_of.take)
        write(GuardedLogger(NAME))

    thread = threading.Thread(target=run, name="relieved")
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def end(thread):
    """Have a thread for lines write those that there are, and wait for it."""
    thread.close()
    thread.join(PATIENCE)


def test_relieved_thread_does_not_wait(lines):
    def write(logger):
        logger.info("one %d", 1)
        logger.debug("nobody wants it")
        try:
            raise ValueError("mine")
        except ValueError:
            logger.exception("two")

    lines.gate.clear()
    thread = LogLineThread()
    relieved(thread, write)
    lines.gate.set()
    end(thread)
    assert lines.texts == ["one 1", "two"]
    first, second = lines.records
    assert (first.threadName, first.funcName, first.by) == ("relieved", "write", "grpc-log")
    assert second.exc_info[0] is ValueError
    assert not [it for it in threading.enumerate() if it.name == "grpc-log"]


def test_lines_beyond_those_that_may_wait_are_counted(lines, monkeypatch):
    def write(logger):
        logger.info("first")
        assert lines.entered.wait(PATIENCE)
        for number in range(5):
            logger.info("%d", number)

    monkeypatch.setattr(log_lines, "_MOST", 2)
    monkeypatch.setattr(log_lines, "logger", GuardedLogger(NAME))
    lines.gate.clear()
    thread = LogLineThread()
    relieved(thread, write)
    lines.gate.set()
    end(thread)
    lost = "3 log lines were lost: the log could not keep up"
    assert lines.texts == ["first", "0", lost, "1"]


def test_line_without_a_thread_for_it_is_written_on_the_spot(lines, monkeypatch):
    def write(logger):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            logger.info("short of threads")
        thread.close()
        logger.info("closed")

    def refuse(self):
        raise RuntimeError("can't start new thread")

    thread = LogLineThread()
    relieved(thread, write)
    assert lines.texts == ["short of threads", "closed"]
    assert {it.by for it in lines.records} == {"relieved"}


def test_handler_that_raises_does_not_end_the_thread(lines):
    def write(logger):
        logger.info("one")
        assert lines.entered.wait(PATIENCE)
        logger.info("two")

    lines.failure = SystemExit()
    thread = LogLineThread()
    relieved(thread, write)
    end(thread)
    assert lines.texts == ["one", "two"]
    assert not logs.are_under_way()
