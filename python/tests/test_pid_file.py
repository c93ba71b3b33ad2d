"""The file with the id of the process that signals are for."""

import os
import re
import signal
import threading

import pytest
from django.core.management import CommandError
from harness import LISTENING, listening, say_hello

from django_grpc.management.pid_file import PidFile


@pytest.mark.parametrize("workers", ["1", "2"])
def test_file_names_the_process_that_signals_are_for(start, tmp_path, workers):
    path = tmp_path / "grpc.pid"
    path.write_text("1\n")  # of one that was killed
    process = start("--port", "0", "--workers", workers, "--pidfile", str(path))
    with listening(process) as channel:
        assert say_hello(channel) == "Hello, World!"
        assert path.read_text() == f"{process.pid}\n"
        assert os.listdir(tmp_path).count("grpc.pid") == 1
        os.kill(int(path.read_text()), signal.SIGTERM)
        assert process.wait() == 0
    assert not path.exists()
    assert not list(tmp_path.glob("grpc.pid*"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_file_that_cannot_be_written_is_a_sentence(start, tmp_path, workers):
    path = tmp_path / "nowhere" / "grpc.pid"
    process = start("--port", "0", "--workers", workers, "--pidfile", str(path))
    assert process.wait() == 1
    assert f"The pid file {path} can't be written: No such file or directory." in process.output
    assert "Traceback" not in process.output
    assert not re.search(LISTENING, process.output)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_file_of_a_server_that_runs_is_left_alone_by_one_that_cannot(start, tmp_path, workers):
    path = tmp_path / "grpc.pid"
    first = start("--port", "0", "--pidfile", str(path))
    with listening(first):
        port = re.search(LISTENING, first.output)[1]
        second = start("--port", port, "--workers", workers, "--pidfile", str(path))
        assert second.wait() == 1
        assert path.read_text() == f"{first.pid}\n"
        first.send(signal.SIGTERM)
        assert first.wait() == 0


def test_file_that_names_another_process_by_then_stays(tmp_path):
    """Of a server that took the address over while this one drained."""
    path = tmp_path / "grpc.pid"
    with PidFile(str(path)) as file:
        file.write()
        path.write_text("1\n")
    assert path.read_text() == "1\n"


@pytest.mark.parametrize("left", [b"", b"x\n", b"\xff", None])
def test_file_that_somebody_has_changed_is_nobodys(tmp_path, left):
    path = tmp_path / "grpc.pid"
    with PidFile(str(path)) as file:
        file.write()
        path.unlink()
        if left is not None:
            path.write_bytes(left)
    assert path.exists() is (left is not None)


def test_folder_that_the_process_goes_to_changes_nothing(tmp_path, monkeypatch):
    """As by code of the project, between the start and the moment when the server listens."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with PidFile("grpc.pid") as file:
        monkeypatch.chdir(tmp_path / "other")
        file.write()
        assert (tmp_path / "grpc.pid").read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / "grpc.pid").exists()


def test_folder_in_its_place(tmp_path):
    path = tmp_path / "grpc.pid"
    path.mkdir()
    with pytest.raises(CommandError, match="Is a directory"), PidFile(str(path)) as file:
        file.write()
    assert os.listdir(tmp_path) == ["grpc.pid"]


def test_pipe_in_its_place_holds_up_no_end(tmp_path):
    """Nobody may ever write into it."""
    path = tmp_path / "pid"

    def serve():
        with PidFile(str(path)) as file:
            file.write()
            path.unlink()
            os.mkfifo(path)

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    serving.join(10)
    assert not serving.is_alive()
