"""The README's five minutes, word for word, in a project that `startproject` makes."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from harness import PATIENCE

from .pages import README, snippets

# Where the README says that a block goes, in its order.
FILES = (
    ("proto", "greeter.proto"),
    ("python", "mysite/servicers.py"),
    ("python", "mysite/settings.py"),
    ("python", "client.py"),
)


def environment() -> dict[str, str]:
    """Return that of a shell which knows of no Django project."""
    kept = {name: it for name, it in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def run(folder: Path, *arguments: str) -> str:
    """Run this Python, and return what it prints."""
    completed = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


def pattern(printed: str) -> str:
    """Return what a line of the README looks like at another time, with other versions."""
    return re.sub(r"\d+", r"\\d+", re.escape(printed))


def test_five_minutes(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    section = text.partition("## Five minutes in your own project")[2].partition("\n## ")[0]
    blocks = [it for it in snippets(README) if it.text in section]
    run(tmp_path, "-m", "django", "startproject", "mysite", ".")
    written = [it for it in blocks if it.language in ("proto", "python")]
    for block, (language, name) in zip(written, FILES, strict=True):
        assert block.language == language
        assert f"`{name}`" in section
        with (tmp_path / name).open("a", encoding="utf-8") as file:  # settings.py has lines already
            file.write("\n" + block.text)
    [protoc] = re.findall(r"^python (-m grpc_tools.protoc .*)$", section, re.MULTILINE)
    run(tmp_path, *shlex.split(protoc))
    served, called = (it.text.splitlines() for it in blocks if it.language == "console")
    assert served[:2] == ["$ python manage.py migrate", "$ python manage.py grpcserver"]
    run(tmp_path, "manage.py", "migrate")
    with subprocess.Popen(
        [sys.executable, "manage.py", "grpcserver", "--port", "0"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            for expected in served[2:]:
                line = server.stdout.readline().rstrip("\n")
                assert re.fullmatch(pattern(expected), line), (expected, line)
            [port] = re.findall(r"\]:(\d+),", line)
            client = tmp_path / "client.py"
            code = client.read_text(encoding="utf-8")
            assert "localhost:50051" in code
            client.write_text(code.replace("50051", port), encoding="utf-8")
            assert called[0] == "$ python client.py"
            assert run(tmp_path, "client.py").splitlines() == called[1:]
        finally:
            server.send_signal(signal.SIGINT)
    assert server.returncode == 0
