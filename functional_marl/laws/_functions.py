"""Stub."""

from typing import Any


def function_module(function: Any, params: Any) -> Any:
    raise NotImplementedError
