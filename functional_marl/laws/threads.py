"""Calls from many threads at once, for the laws that say that a call in any of them is as alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from functional_marl._pytrees import Tree
from functional_marl.laws.law import Broken, agree, broken

__all__ = ["agree_in_threads", "agree_in_turns"]

Calls = Sequence[Callable[[], Tree]]
_MOST_POINTS = 32  # of a call where two threads take turns


class _Found:
    """What became of the calls in each thread."""

    def __init__(self, calls: Calls, wanted: Sequence[Tree]) -> None:
        self.calls, self.wanted, self.errors = calls, wanted, dict[int, BaseException]()

    def work(self, t: int, rounds: int = 1) -> None:
        try:
            for _ in range(rounds):
                agree(self.calls[t](), self.wanted[t], f"thread {t}", exact=True)
        except BaseException as error:
            self.errors[t] = error

    def tell(self) -> None:
        """Raise the first that went wrong."""
        for t, error in sorted(self.errors.items()):
            if isinstance(error, Broken):
                raise error
            broken(f"thread {t}: expected outputs as alone, got {type(error).__name__}: {error}")


def agree_in_threads(calls: Calls, wanted: Sequence[Tree], *, rounds: int, pause: float = 1e-6) -> None:
    """Raise unless each call, made ``rounds`` times in a thread of its own, gives what is wanted, to the bit.

    All threads start together, and Python takes turns among them every ``pause`` seconds.
    """
    start, found = threading.Barrier(len(calls)), _Found(calls, wanted)

    def run(t: int) -> None:
        start.wait()
        found.work(t, rounds)

    threads = [threading.Thread(target=run, args=(t,)) for t in range(len(calls))]
    was = sys.getswitchinterval()
    sys.setswitchinterval(pause)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(was)
    found.tell()


def agree_in_turns(calls: Calls) -> None:
    """Raise unless two calls give what they give alone when the second comes into the middle of the first.

    Alone too they run beside a hook for all modules, for a library may evaluate in another way then. Nothing is left
    to chance: for each module that a call comes to, both threads stop there, the first goes on to its end, and then
    the second does.
    """
    handle = nn.modules.module.register_module_forward_pre_hook(lambda module, inputs: None)
    try:
        found = _Found(calls, [call() for call in calls])
    finally:
        handle.remove()
    for point in range(1, _MOST_POINTS + 1):
        came = _take_turns(found.work, point)
        found.tell()
        if not came:
            return


def _take_turns(work: Callable[[int], None], point: int) -> bool:
    """Threads 0 and 1 each stop before their ``point``-th module; 0 goes on to its end, and then 1 does.

    Returns:
        whether both came so far. A thread that waits for the other, as for a lock, is let go after a second.
    """
    ready, go = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]
    counts, numbers = [0, 0], dict[int, int]()

    def stop(_module: nn.Module, _inputs: Any) -> None:
        t = numbers.get(threading.get_ident())
        if t is not None:
            counts[t] += 1
            if counts[t] == point:
                ready[t].set()
                go[t].wait(1)

    def run(t: int) -> None:
        numbers[threading.get_ident()] = t
        work(t)
        ready[t].set()

    threads = [threading.Thread(target=run, args=(t,)) for t in range(2)]
    handle = nn.modules.module.register_module_forward_pre_hook(stop)
    try:
        for thread, came in zip(threads, ready, strict=True):
            thread.start()
            came.wait(1)
        in_time = min(counts) >= point
        for thread, free in zip(threads, go, strict=True):
            free.set()
            thread.join()
    finally:
        handle.remove()
    return in_time
