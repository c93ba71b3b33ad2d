"""How a process is told to stop, whatever its threads do."""

import asyncio
import signal
import subprocess
import sys
import threading
import time

import pytest

from django_grpc.lifecycle.shutdown import ShutdownRequest
from django_grpc.lifecycle.stop_signals import TOGETHER

# Threads that start threads look for signals each time, and take one that was meant for the main
# thread: some two of five, without a remedy.
BUSY = """
import asyncio, sys, threading
from django_grpc.lifecycle.shutdown import ShutdownRequest

def start_threads():
    while True:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()

async def wait_async(shutdown):
    # The main thread has its loop to sleep in.
    return await asyncio.to_thread(shutdown.wait)

with ShutdownRequest() as shutdown:
    for _ in range(4):
        threading.Thread(target=start_threads, daemon=True).start()
    print("up", flush=True)
    if sys.argv[1] == "sync":
        print(shutdown.wait(), flush=True)
    else:
        print(asyncio.run(wait_async(shutdown)), flush=True)
    if sys.argv[2] == "again":
        threading.Event().wait()
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_signal_that_another_thread_took_ends_the_wait(kind: str) -> None:
    for _ in range(15):
        process = start(kind, "once")
        process.send_signal(signal.SIGTERM)
        try:
            output, _ = process.communicate(timeout=10)
        finally:
            process.kill()
        assert (output, process.returncode) == ("SIGTERM\n", 0)


def test_a_second_signal_that_another_thread_took_ends_the_process() -> None:
    for _ in range(8):
        process = start("sync", "again")
        assert process.stdout is not None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "SIGTERM\n"
        time.sleep(TOGETHER)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=10) == 128 + signal.SIGINT
        finally:
            process.kill()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_two_signals_that_come_together_are_one(second: signal.Signals) -> None:
    """``timeout`` and wrappers signal a process and its group; a later one counts."""
    process = start("sync", "again")
    assert process.stdout is not None
    process.send_signal(signal.SIGTERM)
    process.send_signal(second)
    begun = time.monotonic()
    assert process.stdout.readline() in ("SIGTERM\n", "SIGINT\n")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=TOGETHER + 0.2)
    assert time.monotonic() - begun >= TOGETHER
    process.send_signal(second)
    try:
        assert process.wait(timeout=10) == 128 + second
    finally:
        process.kill()


def test_one_signal_is_one_request() -> None:
    """What wakes the main thread again does not count as a second signal."""
    process = start("sync", "again")
    assert process.stdout is not None
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.kill()
    process.wait()


def test_what_was_there_before_is_there_afterwards() -> None:
    handlers = {it: signal.getsignal(it) for it in (signal.SIGTERM, signal.SIGINT, signal.SIGURG)}
    threads = set(threading.enumerate())
    with ShutdownRequest() as shutdown:
        shutdown.request("told")
        assert shutdown.wait() == "told"
        started = set(threading.enumerate()) - threads

    assert {it: signal.getsignal(it) for it in handlers} == handlers
    assert signal.set_wakeup_fd(-1) == -1
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


UNHELPED = """
import threading, signal, sys

start = threading.Thread.start

def refuse(self):
    if self.name == "grpcserver-signals":
        raise RuntimeError("can't start new thread")
    start(self)

threading.Thread.start = refuse
"""


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_signal_is_heard_without_the_thread_that_helps(how: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", UNHELPED + BUSY, how, "once"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20)[0] == "SIGTERM\n"
    finally:
        process.kill()
        process.wait()


def test_a_first_signal_after_another_request_is_no_second_one() -> None:
    script = f"""
import signal, time
from django_grpc.lifecycle.shutdown import ShutdownRequest

with ShutdownRequest(is_last=True) as shutdown:
    shutdown.request("reload")
    time.sleep({TOGETHER * 1.2})
    signal.raise_signal(signal.SIGTERM)
    print(shutdown.wait(), flush=True)
    time.sleep({TOGETHER * 1.2})
    signal.raise_signal(signal.SIGINT)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert result.stdout == b"reload\n"
    assert result.returncode == 128 + signal.SIGINT


def test_on_another_thread_only_a_request_ends_the_wait() -> None:
    async def wait() -> str:
        def serve() -> str:
            with ShutdownRequest() as shutdown:
                shutdown.request("told")
                return shutdown.wait()

        return await asyncio.to_thread(serve)

    assert asyncio.run(wait()) == "told"


FORKING = """
import os, signal, time
from django_grpc.lifecycle.shutdown import ShutdownRequest

with ShutdownRequest() as shutdown:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"x")  # Python drops a signal that comes while it forks
        time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
    os.kill(child, signal.SIGTERM)
    print(-os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    print(shutdown.wait(), flush=True)
"""


def test_a_signal_ends_a_process_that_was_forked() -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{signal.SIGTERM:d}\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=10) == ("SIGTERM\n", "")
    finally:
        process.kill()
        process.wait()


LEFT = """
import os, signal, sys, time
from django_grpc.lifecycle.process_end import end_in_peace
from django_grpc.lifecycle.shutdown import ShutdownRequest
from django_grpc.lifecycle.stop_signals import TOGETHER

how, ends_in_peace = sys.argv[1:]
if how == "ignored":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if how == "own":
    signal.signal(signal.SIGTERM, lambda *_: (print("own", flush=True), os._exit(5)))
try:
    with ShutdownRequest(is_last=True) as shutdown:
        shutdown.request("stopped")
        if how == "failed":
            raise ValueError
except ValueError:
    pass
if ends_in_peace == "True":
    end_in_peace()
signal.raise_signal(signal.SIGTERM)
print("together", flush=True)
time.sleep(TOGETHER + 0.2)
signal.raise_signal(signal.SIGTERM)
print("later", flush=True)
"""


@pytest.mark.parametrize("ends_in_peace", [True, False])
@pytest.mark.parametrize(
    ("how", "output", "status"),
    [
        ("default", "together\n", 128 + signal.SIGTERM),
        ("own", "together\nown\n", 5),
        ("ignored", "together\nlater\n", 0),
    ],
)
def test_signals_after_the_last_request(how, output, status, ends_in_peace):
    """What belongs to the first changes nothing; a program that goes on has its own handlers."""
    command = [sys.executable, "-c", LEFT, how, str(ends_in_peace)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (completed.stdout, completed.returncode) == (output, status)


def test_handlers_are_given_back_where_the_last_request_fails():
    command = [sys.executable, "-c", LEFT, "failed", "False"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (completed.stdout, completed.returncode) == ("", -signal.SIGTERM)
