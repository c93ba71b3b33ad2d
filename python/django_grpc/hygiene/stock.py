"""Whether a function is the one that Django came with."""

from types import FunctionType, ModuleType
from typing import Any


def is_stock(function: Any, module: ModuleType) -> bool:
    """Whether a function is a module's own, and nothing that a tool has put in its place."""
    return type(function) is FunctionType and function.__code__.co_filename == module.__file__
