"""Parts of the supervisor that need no process."""

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from socket import SOCK_SEQPACKET

import pytest
from django.core.exceptions import ImproperlyConfigured
from harness import PATIENCE
from log_handlers import odd_handler

from django_grpc import _engine, conf, log_lines
from django_grpc.management import complaints
from django_grpc.processes import listeners, protocol, systemd, worker
from django_grpc.processes.board import Board, Pulse
from django_grpc.processes.crashes import FORGOTTEN_AFTER, LIMIT, Failures
from django_grpc.processes.fleet import MARGIN
from django_grpc.processes.load import Load
from django_grpc.processes.protocol import Inheritance, Plan
from django_grpc.processes.recycling import draw_max_calls
from django_grpc.processes.signals import SignalQueue


def plan(**setting):
    config, problems = conf.parse(setting)
    assert config is not None, problems
    return Plan.of(config)


# Crashes


def test_a_server_gives_up_after_so_many_failures_in_a_row():
    crashes = Failures()
    pauses = []
    now = 100.0
    for _ in range(LIMIT):
        assert not crashes.is_hopeless
        crashes.failed(now, now + 1)
        pauses.append(crashes.retry_at - (now + 1))
        now += 100
    assert crashes.is_hopeless
    assert pauses[0] == 0, "a dead one is replaced at once"
    assert pauses == sorted(pauses)
    assert pauses[1] > 0


def test_workers_that_fail_together_count_once():
    crashes = Failures()
    for ended in range(2 * LIMIT):
        crashes.failed(100, 101 + ended / 100)
    assert not crashes.is_hopeless


def test_success_of_a_worker_that_is_younger_than_the_failures_ends_the_row():
    crashes = Failures()
    for now in (100, 200, 300, 400):
        crashes.failed(now, now + 1)
    crashes.succeeded(started_at=50)
    crashes.failed(404, 405)
    assert crashes.is_hopeless
    crashes.succeeded(started_at=406)
    assert not crashes.is_hopeless
    assert crashes.retry_at == 0


@pytest.mark.parametrize("is_long", [False, True])
def test_failures_are_forgotten_in_time(is_long):
    crashes = Failures()
    now = 1000.0
    for _ in range(LIMIT):
        crashes.failed(now, now)
        now += FORGOTTEN_AFTER + is_long
    assert crashes.is_hopeless is not is_long


# What a worker carries


def test_new_connections_count_as_average_ones_until_they_are_measured():
    load = Load()
    for _ in range(4):
        load.opened()
    assert load.expected(average=10) == 40
    load.measured(100, connections=4)
    assert load.expected(average=10) == 100
    load.opened()
    assert load.expected(average=25) == 125


def test_connections_that_have_gone_take_their_calls_along():
    load = Load()
    for _ in range(4):
        load.opened()
    load.measured(100, connections=4)
    load.closed(3)
    assert load.expected(average=0) == 25
    load.closed(1)
    assert load.expected(average=0) == 0
    load.closed(1)  # one that was never counted
    assert load.expected(average=0) == 0


# The plan


def test_calls_before_a_replacement_are_spread():
    drawn = {draw_max_calls(plan(worker_max_calls=1000)) for _ in range(200)}
    assert min(drawn) >= 1000
    assert max(drawn) <= 1100
    assert len(drawn) > 20
    one = plan(worker_max_calls=1000, worker_max_calls_jitter=1)
    assert {draw_max_calls(one) for _ in range(50)} <= {1000, 1001}
    assert draw_max_calls(plan()) is None


def test_no_number_of_workers_is_one_for_each_processor():
    assert plan(workers=0).workers == len(os.sched_getaffinity(0))
    assert plan().workers == 1


# The board


def test_slots_end():
    board = Board(2)
    assert [board.take() for _ in range(2)] == [0, 1]
    with pytest.raises(IndexError):
        board.take()
    assert Board.slots_for(100) == 208


def test_pulse_is_seen_in_its_slot_only():
    board = Board(2)
    assert [board.figures.pulse(slot) for slot in (0, 1)] == [0, 0]
    pulse = Pulse(board.descriptor, 1)
    pulse.beat()
    assert board.figures.pulse(0) == 0
    assert abs(board.figures.pulse(1) - time.monotonic_ns() // 1_000_000) < 60_000
    board.give_back(1)
    assert board.figures.pulse(1) == 0


def test_slot_of_an_ended_process_is_the_next():
    board = Board(4)
    assert [board.take(), board.take()] == [0, 1]
    board.give_back(0)
    assert [board.take(), board.take()] == [0, 2]


@pytest.mark.parametrize("slot", [-1, 2, 1 << 40])
def test_slot_that_a_board_does_not_have_is_refused(slot):
    figures = Board(2).figures
    for method in (figures.is_ready, figures.announce, figures.process_ended, figures.beat):
        with pytest.raises(ValueError, match="2 slots"):
            method(slot)


@pytest.mark.parametrize("slot", [None, "0", 1 << 80])
def test_slot_that_is_no_number_is_refused(slot):
    with pytest.raises(TypeError, match="must be an int"):
        Board(2).figures.pulse(slot)


def test_restart_without_a_reason_that_is_counted_is_refused():
    with pytest.raises(ValueError, match="no reason"):
        Board(2).figures.count_restart("boredom")


def test_descriptor_that_is_no_board_is_refused(tmp_path):
    with (tmp_path / "file").open("wb+") as file, pytest.raises(ValueError, match="no statistics"):
        _engine.make_statistics_board(file.fileno(), 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _engine.make_statistics_board(-1, 2)


# Sockets


def test_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(OSError, match="in use"):
        listeners.bind(f"unix:{path}")
    assert path.read_text() == "mine"


def test_socket_that_somebody_listens_on_is_left_alone(tmp_path):
    (first,) = listeners.bind(f"unix:{tmp_path}/it.sock")
    with pytest.raises(OSError, match="in use"):
        listeners.bind(f"unix:{tmp_path}/it.sock")
    first.close()
    (second,) = listeners.bind(f"unix:{tmp_path}/it.sock")
    second.close()
    assert not (tmp_path / "it.sock").exists()


def test_socket_with_a_full_backlog_is_in_use(tmp_path):
    """A connection to it would wait until somebody accepts."""
    path = str(tmp_path / "it.sock")
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as waiting:
        full.bind(path)
        full.listen(0)
        waiting.connect(path)
        with pytest.raises(OSError, match="in use"):
            listeners.bind(f"unix:{path}")
    listeners.bind(f"unix:{path}")[0].close()


def test_file_of_a_successor_stays(tmp_path):
    """Whether it came before or after this one closed, and however often this one closes."""
    path = tmp_path / "it.sock"
    (first,) = listeners.bind(f"unix:{path}")
    path.unlink()
    (second,) = listeners.bind(f"unix:{path}")
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()
    (third,) = listeners.bind(f"unix:{path}")
    second.close()
    assert path.exists()
    third.close()


def test_every_address_of_a_host_is_listened_on():
    for _ in range(20):
        bound = listeners.bind("localhost:0")
        port = bound[0].socket.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port)).close()
        assert listeners.addresses(bound) == f"localhost:{port}"
        for it in bound:
            it.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_one_taken_address_of_a_host_refuses_all(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as taken:
        taken.bind((host, 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            listeners.bind(f"localhost:{taken.getsockname()[1]}")


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("a..b:0", "resolve"),
        ("x" * 64 + ".example:0", "resolve"),
        ("[:0", "resolve"),
        ("]:0", "resolve"),
        ("[[::]]:0", "resolve"),
        ("a\0b:0", "resolve"),
        ("unix:", "'unix:' names no socket"),
        ("unix://", "'unix://' names no socket"),
        ("unix-abstract:", "'unix-abstract:' names no socket"),
        ("[::1:0", "needs brackets around its IPv6 address"),
        ("::1]:0", "needs brackets around its IPv6 address"),
        ("[::1]x:0", "needs brackets around its IPv6 address"),
        ("::1:0", "needs brackets around its IPv6 address"),
    ],
)
def test_what_is_no_address_for_the_engine_is_none_here(address, complaint, engine_server):
    with pytest.raises(OSError, match=complaint):
        listeners.bind(address)
    with pytest.raises(RuntimeError, match=complaint):
        engine_server().add_insecure_port(address)


def test_shortage_names_its_limit():
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = listeners.why_not_accepted(OSError(errno.EMFILE, "Too many open files"))
    assert f"all {limit} file descriptors" in text
    assert "LimitNOFILE=" in text
    assert "No buffer" in listeners.why_not_accepted(OSError(errno.ENOBUFS, "No buffer space"))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EMFILE, "x"), "file descriptors that this process may open"),
        (OSError(errno.EAGAIN, "x"), "Raise the limit of threads (ulimit -u"),
        (OSError(errno.ENOENT, "No such file", "/dev/null"), "No such file: '/dev/null'"),
        (OSError("no reason"), "no reason"),
    ],
)
def test_process_that_is_refused_is_explained(error, text):
    assert text in listeners.why_refused(error)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1:0", "127.0.0.1:"), ("[::1]:0", "[::1]:"), ("[::]:0", "[::]:"), ("*:0", "*:")],
)
def test_address_has_the_port_that_was_bound(address, expected):
    (bound,) = listeners.bind(address)
    try:
        assert bound.address == f"{expected}{bound.socket.getsockname()[1]}"
    finally:
        bound.close()


def test_socket_that_does_not_listen_is_not_adopted():
    with socket.socket() as idle:
        with pytest.raises(OSError, match="no socket that listens"):
            listeners.adopt(idle.fileno())
        assert idle.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE), "it is still open"


def test_what_systemd_meant_for_the_parent_is_not_for_workers():
    names = ("LISTEN_PID", "LISTEN_FDS", "NOTIFY_SOCKET", "WATCHDOG_USEC", "OTHER")
    assert systemd.for_workers(dict.fromkeys(names, "1")) == {"OTHER": "1"}


def test_metrics_on_a_socket_of_systemd_name_its_mend():
    text = complaints.about_metrics(None, OSError(errno.EINVAL, "no socket that listens"))
    assert "systemd's socket of that name: no socket that listens. Its unit needs" in text
    assert "--metrics" not in text


def test_socket_of_another_user_is_told(monkeypatch, tmp_path):
    path = tmp_path / "it.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
    error = OSError(errno.EADDRINUSE, "in use")
    assert "it is already in use" in complaints.about_address(f"unix:{path}", error)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert f"another user (uid {os.getuid()})" in complaints.about_address(f"unix:{path}", error)


def test_more_sockets_than_a_process_can_have_are_refused(monkeypatch):
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "9" * 10)
    with pytest.raises(ImproperlyConfigured, match="LISTEN_FDS is more than a process can have"):
        systemd.take_sockets()


def test_notification_without_anybody_to_hear_it_is_a_warning(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    systemd.notify_ready("Serving")
    assert "The service manager can't be told READY=1" in caplog.text


@pytest.fixture
def inherit(monkeypatch):
    """Leave something to this process, as a parent does, with more in its variable."""
    with contextlib.ExitStack() as at_end:

        def inherit(**invented):
            parent, control = map(at_end.enter_context, socket.socketpair(type=SOCK_SEQPACKET))
            files = [at_end.enter_context(tempfile.TemporaryFile()) for _ in range(4)]
            intake, released, board, metrics = [file.fileno() for file in files]
            inheritance = Inheritance(
                control=control.fileno(),
                intake=intake,
                released=released,
                board=board,
                slot=3,
                metrics=[metrics],
                address="127.0.0.1:1",
                is_first=True,
            )
            os.set_inheritable(control.fileno(), True)
            for name, value in inheritance.variables().items():
                monkeypatch.setenv(name, value)
            if invented:
                said = {**json.loads(os.environ["DJANGO_GRPC_WORKER"]), **invented}
                monkeypatch.setenv("DJANGO_GRPC_WORKER", json.dumps(said))
            inheritance.send(parent)
            return inheritance, parent

        yield inherit


def files_of(inheritance):
    descriptors = (inheritance.intake, inheritance.released, inheritance.board)
    return [os.fstat(it).st_ino for it in (*descriptors, *inheritance.metrics)]


def test_inheritance_is_taken_once(inherit):
    left, parent = inherit()
    taken = Inheritance.take()
    assert files_of(taken) == files_of(left)
    assert (taken.slot, taken.address, taken.is_first) == (3, "127.0.0.1:1", True)
    for descriptor in (taken.control, taken.intake, taken.released, taken.board, *taken.metrics):
        assert not os.get_inheritable(descriptor)
    with socket.socket(fileno=os.dup(taken.control)) as control:
        protocol.send(control, protocol.LEAVING)
    assert protocol.receive(parent) == {"event": protocol.LEAVING}
    assert Inheritance.take() is None
    for descriptor in (taken.intake, taken.released, taken.board, *taken.metrics):
        os.close(descriptor)


def test_worker_whose_parent_has_ended_inherits_nothing(inherit):
    left, parent = inherit()
    with socket.socket(fileno=os.dup(left.control)) as control:
        socket.recv_fds(control, 1, 10)
    parent.close()
    with pytest.raises(OSError, match="open files"):
        Inheritance.take()


def test_worker_of_another_version_is_understood(inherit):
    known = plan(workers=3)
    told = known.told({"workers": 5, "invented_later": 1})
    assert told.workers == 5
    assert told.max_workers == known.max_workers, "what it does not say stays"
    inherit(invented_later=1)
    taken = Inheritance.take()
    assert taken is not None
    assert taken.slot == 3


@pytest.mark.parametrize("text", [b"{", b"[]", b"7", b"{}", b"\xff"])
def test_what_is_no_message_is_refused(text):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(text)
        with pytest.raises(ValueError, match=r".+"):
            protocol.receive(ours)


# Signals


def test_no_signal_is_lost_when_nobody_looks_for_long(capfd):
    queue = SignalQueue([signal.SIGUSR1, signal.SIGUSR2])
    with queue:
        for _ in range(20_000):  # more than the descriptor has room for
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR2)
        taken = queue.take()
        assert taken[-1] == signal.SIGUSR2
        assert len(taken) == 20_001
        assert queue.take() == []
    assert capfd.readouterr().err == ""


# Children

REAPER = """
import ctypes, os, subprocess, sys, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
from django_grpc.processes.prctl import Orphans, _children

mine = subprocess.Popen(["true"])
orphans = Orphans()
known = subprocess.Popen(["true"])
# Its child outlives it, and comes to this process.
subprocess.run(["sh", "-c", "sleep 0.1 & exit 0"], check=True)
give_up_at = time.monotonic() + 10
while len(_children()) > 2 and time.monotonic() < give_up_at:
    orphans.reap({known.pid})
    time.sleep(0.02)
print(len(_children()), mine.wait(), known.wait())
"""


def test_orphans_are_reaped_and_no_others():
    output = subprocess.run(
        [sys.executable, "-c", REAPER], stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    assert output == "2 0 0\n"


def test_notification_goes_before_what_log_handlers_raise(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with odd_handler("django_grpc.workers") as lines:
        lines.failure = ConnectionError("the database of the log is away")
        systemd.notify_reloading()
        assert lines.texts[0].startswith("The service manager can't be told RELOADING=1: ")


@pytest.mark.parametrize("failure", [ConnectionError(), None])
def test_orphan_drains_whatever_log_handlers_do(monkeypatch, failure):
    """Either they raise, or they wait for what has gone with the parent."""
    requested, ended = [], []
    monkeypatch.setattr(log_lines, "_TIMEOUT", 0.05)
    monkeypatch.setattr(worker, "end_process", lambda *arguments: ended.append(arguments))
    place = object.__new__(worker.WorkerPlace)
    place._config = None
    place._shutdown = types.SimpleNamespace(request=requested.append)
    place._control, parent = socket.socketpair()
    parent.close()
    with place._control, odd_handler("django_grpc.workers") as lines:
        lines.failure = failure
        if failure is None:
            lines.gate.clear()
        place._follow()
        assert requested == ["the supervisor has ended"]
        assert ended == [(1, MARGIN)]
        assert lines.entered.wait(PATIENCE)
        assert len(lines.texts) == 1


# The command line of workers


@pytest.mark.parametrize(
    ("command", "expected"),
    [(["sub/script.py"], "."), (["./sub/script.py"], "."), (["-m", "sub.script"], ".")],
)
def test_workers_start_where_their_parent_did(tmp_path, command, expected):
    """The settings may have gone elsewhere (`os.chdir(BASE_DIR)`) before there are any."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "script.py").write_text(
        "import os\n"
        "import sys\n"
        "sys.path.insert(0, '/usr')\n"
        "os.chdir('/')\n"
        "from django_grpc.processes.origin import start_directory\n"
        "print(os.path.realpath(start_directory()))\n"
    )
    completed = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={**os.environ, "PWD": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.stdout.strip() == str((tmp_path / expected).resolve()), completed.stderr


ORIGIN = """
import os
from django_grpc.processes import origin
print(origin.start_directory(), origin.worker_environment().get("ADDED"))
"""


def tell_origin(*arguments, **kwargs):
    completed = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **kwargs
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.split()


@pytest.mark.parametrize(("said", "expected"), [("/", "None"), ("", "None"), (None, "here")])
def test_workers_of_a_script_with_its_whole_path_start_here(tmp_path, said, expected):
    (tmp_path / "script.py").write_text(ORIGIN)
    environment = {**os.environ, "PWD": str(tmp_path) if said is None else said}
    place, _ = tell_origin(str(tmp_path / "script.py"), cwd=tmp_path, env=environment)
    assert place == (str(tmp_path) if expected == "here" else expected)


@pytest.mark.parametrize("command", [["script.py"], ["-m", "script"]])
def test_workers_start_where_a_link_leads_by_then(tmp_path, command):
    """As releases behind ``current`` have it."""
    (tmp_path / "release").mkdir()
    (tmp_path / "current").symlink_to("release")
    (tmp_path / "release" / "script.py").write_text(ORIGIN)
    current = str(tmp_path / "current")
    place, _ = tell_origin(*command, cwd=current, env={**os.environ, "PWD": current})
    assert place == current


def test_what_a_process_manager_left_in_pwd_is_no_start_directory(tmp_path):
    for name in ("app", "lib"):
        (tmp_path / name).mkdir()
    (tmp_path / "app" / "script.py").write_text(ORIGIN)
    lib = str(tmp_path / "lib")
    environment = {**os.environ, "PWD": lib, "PYTHONPATH": lib}
    place, _ = tell_origin("-m", "script", cwd=tmp_path / "app", env=environment)
    assert place == str(tmp_path / "app")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("os.environ['ADDED'] = 'by the settings'", "None"),
        (
            "del os.environ['PATH']; os.environ['ADDED'] = 'yes'",
            "yes",
        ),  # what the kernel has is odd
    ],
)
def test_workers_begin_with_the_environment_of_the_start(tmp_path, change, expected):
    (tmp_path / "script.py").write_text(f"import os\n{change}\n{ORIGIN}")
    assert tell_origin(str(tmp_path / "script.py"))[1] == expected
