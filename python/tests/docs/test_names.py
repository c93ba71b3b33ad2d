"""Flags, variables and settings that the pages name are there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

from django_grpc.conf.keys import KEYS

from .pages import PAGES, code_spans, snippets

OUR_COMMANDS = ("grpcserver", "grpchealth", "grpctop")

# Of pip, docker, kubectl, a linker, Swift's package manager and Django's test command.
FOREIGN_FLAGS = {
    "--env-file", "--explicit-target-dependency-import-check", "--force-reinstall", "--gc-sections",
    "--init", "--mode", "--only", "--parallel", "--read-only", "--stop-timeout", "--version-script",
}  # fmt: skip


def flags_of(command: str) -> set[str]:
    parser = load_command_class(get_commands()[command], command).create_parser("", command)
    return set(parser._option_string_actions)


def our_calls(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of the calls of our commands in a page's blocks, from the name on."""
    for snippet in snippets(page, "sh", "console"):
        for line in snippet.text.replace("\\\n", " ").splitlines():
            words = (
                shlex.split(line.removeprefix("$ "), comments=True) if "manage.py" in line else []
            )
            for index, word in enumerate(words):
                if word in OUR_COMMANDS and "manage.py" in words[index - 1]:
                    yield words[index:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_calls_of_commands_are_understood(page: Path) -> None:
    for command, *arguments in our_calls(page):
        parser = load_command_class(get_commands()[command], command).create_parser("", command)
        parser.parse_args(arguments)


def test_there_are_calls_of_each_command() -> None:
    called = {command for page in PAGES for command, *_ in our_calls(page)}
    assert called >= {"grpcserver"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_in_sentences_exist(page: Path) -> None:
    known = FOREIGN_FLAGS.union(*map(flags_of, OUR_COMMANDS))
    named = {
        flag for span in code_spans(page) for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)
    }
    assert named <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_variables_exist(page: Path) -> None:
    known = {f"GRPCSERVER_{name.upper()}" for name, key in KEYS.items() if key.read is not None}
    named = set(re.findall(r"\bGRPCSERVER_[A-Z][A-Z_]*", page.read_text(encoding="utf-8")))
    assert named <= known


def test_the_table_of_keys_is_the_one_that_is_served() -> None:
    configuration = next(page for page in PAGES if page.name == "configuration.md")
    rows = re.findall(
        r"^\| `(\w+)` \|(.*?)\| (E\d+) \|", configuration.read_text(encoding="utf-8"), re.M
    )
    written = {name: (re.findall(r"--[\w-]+", flags), code) for name, flags, code in rows}
    there_are = {}
    for name, key in KEYS.items():
        flags = [] if key.flag is None else [key.flag_name]
        if key.flag is not None and key.flag.type is bool:
            flags.append(key.flag_name.replace("--", "--no-"))
        there_are[name] = (flags, key.code)
    assert written == there_are
