"""Stub."""

from typing import Any


def agree_in_turns(calls: Any, *, seed: int = 0) -> None:
    for call in calls:
        call()
