"""Stub."""

from typing import Any


def keyed_by_agent(module: Any, agents: Any, example: Any, batch_dims: Any) -> Any:
    raise NotImplementedError
