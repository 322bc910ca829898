"""Races between two calls, found by taking turns at chosen places and not by chance.

Each call is made in a thread of its own. ``sys.settrace``, which belongs to the thread, stops both at one place of the
Python code; the first then goes on to its end, and the second after it. No switch of the whole process is touched.
"""

from __future__ import annotations

import contextvars
import dis
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

from functional_marl._pytrees import Tree
from functional_marl.laws._compare import Broken, agree, broken

__all__ = ["agree_in_turns"]

Calls = Sequence[Callable[[], Tree]]

_PATIENCE = 1.0  # seconds for which a thread may come no further before the other is let go
_LEAST_PATIENCE = 0.03
_LOST = 60.0  # seconds after which a thread counts as blocked for ever

_MODULE_CALL = dis.Bytecode(nn.Module.__call__).codeobj
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
# Code that is followed from call to call, but not from line to line: torch, NumPy, the standard library, the laws.
_LIBRARIES = tuple(os.path.dirname(path) + os.sep for path in (torch.__file__, os.__file__))
_SITE = os.sep + "site-packages" + os.sep


@dataclass(frozen=True)
class _Place:
    """The ``nth`` time that a thread comes to a line of a function; line 0 is the call of the function."""

    code: CodeType
    line: int
    nth: int


def agree_in_turns(calls: Calls, wanted: Sequence[Tree] | None = None, *, points: int = 48, seed: int = 0) -> None:
    """Raise unless two calls give what they give alone when the second comes into the middle of the first.

    At each of some places of the code both threads stop, the first goes on to its end, and then the second does. The
    places are calls of modules, lines of functions outside of torch (those of the outermost functions first), and
    calls of any function, as the seed chooses. Only Python code is seen: neither the inside of a statement nor
    compiled code, and no thread that a call starts.

    A call is made in a thread with the context variables of the caller, but not with its torch modes: a call that is
    to run without gradients says so itself. Nothing is restored afterwards: use
    :func:`functional_marl.laws._restore.kept`. A call that is not the same twice is no race; ask for that first.

    Args:
        calls: two functions without arguments.
        wanted: what they give alone; by default what they give in a traced thread with nobody beside them.
        points: at most how many places, and as many pairs of calls.
        seed: chooses among the places.

    Raises:
        Broken: a call gives something else, or raises. Whatever a call raises alone is raised as it is.
    """
    first, second = calls
    if points < 1:
        raise ValueError(f"points: expected 1 or more, got {points}")
    calls = (first, second)
    for call in calls:
        _alone(call, None)  # fills caches, so that the next calls take the same way as the last
    record = _Record()
    start = time.monotonic()
    found = [_alone(call, record if t == 0 else None) for t, call in enumerate(calls)]
    patience = _Patience(at_least=2 * (time.monotonic() - start))
    if wanted is None:
        wanted = found
    else:
        for t, (tree, want) in enumerate(zip(found, wanted, strict=True)):
            agree(tree, want, f"thread {t}, alone", exact=True)
    for place in record.choose(points, random.Random(seed)):
        _take_turns(calls, wanted, place, patience)


# --- one call alone --------------------------------------------------------------------------------------


@dataclass
class _Record:
    """The places that a call came to: how often, and how deep among the functions outside of torch."""

    modules: int = 0
    calls: dict[CodeType, int] = field(default_factory=dict[CodeType, int])
    lines: dict[tuple[CodeType, int], list[int]] = field(default_factory=dict[tuple[CodeType, int], list[int]])
    followed: dict[CodeType, bool] = field(default_factory=dict[CodeType, bool])
    depth: int = 0

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        """For ``sys.settrace``."""
        code = frame.f_code
        if code is _MODULE_CALL:
            self.modules += 1
            return None
        self.calls[code] = self.calls.get(code, 0) + 1
        followed = self.followed.get(code)
        if followed is None:
            followed = self.followed[code] = _is_followed(code.co_filename)
        if not followed:
            return None
        self.depth += 1
        return self._trace_lines

    def _trace_lines(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            place = frame.f_code, frame.f_lineno
            known = self.lines.get(place)
            if known is None:
                self.lines[place] = [1, self.depth]
            else:
                known[0] += 1
        elif event == "return":
            self.depth -= 1
        return self._trace_lines

    def choose(self, points: int, rng: random.Random) -> list[_Place]:
        """At most so many places: a third each of calls of modules, of outer lines, and of everything else."""
        modules = [_Place(_MODULE_CALL, 0, n + 1) for n in range(self.modules)]
        lines = sorted(self.lines, key=lambda place: self.lines[place][1])  # of one depth: in the order of the run
        outer = [_Place(code, line, 1) for code, line in lines]
        third = -(-points // 3)
        chosen = [*_some(modules, third, rng), *outer[:third]]
        rest = [*modules, *outer[third:], *(_Place(code, 0, 1) for code in self.calls)]
        # a later time at a line, of those that came more than once: of a loop, a memory that is filled, a second layer
        rest += [_Place(*place, rng.randint(2, times)) for place, (times, _) in self.lines.items() if times > 1]
        rest = [place for place in rest if place not in set(chosen)]
        return [*chosen, *_some(rest, points - len(chosen), rng)][:points]


def _some(places: list[_Place], most: int, rng: random.Random) -> list[_Place]:
    """All, or the first and others at random, in the order of the run."""
    if len(places) <= most:
        return places
    return [places[i] for i in sorted({0, *rng.sample(range(1, len(places)), most - 1)})] if most > 0 else []


def _is_followed(path: str) -> bool:
    if path.startswith(("<frozen", "<string", _HERE)) or f"{_SITE}numpy{os.sep}" in path:
        return False
    return (_SITE in path and not path.startswith(_LIBRARIES[0])) or not path.startswith(_LIBRARIES)


def _alone(call: Callable[[], Tree], record: _Record | None) -> Tree:
    """What a call gives in a thread of its own, traced."""
    worker = _Worker(call, (record or _Record()).trace)
    try:
        worker.start()
    finally:
        if worker.ident is not None:
            worker.join()
    if worker.error is not None:
        raise worker.error
    return worker.output


class _Worker(threading.Thread):
    """A thread that makes one call under a trace function; it keeps what the call gives or raises."""

    def __init__(self, call: Callable[[], Tree], trace: Any, *at_end: threading.Event) -> None:
        super().__init__(daemon=True)  # one that is blocked for ever does not keep the process alive
        self._call, self._trace = call, trace
        self._context = contextvars.copy_context()
        self.output: Any = None
        self.error: BaseException | None = None
        self.done = threading.Event()
        self._at_end = at_end

    def run(self) -> None:
        was = sys.gettrace()  # of a debugger, or of a measurement of coverage
        try:
            sys.settrace(self._trace)
            self.output = self._context.run(self._call)
        except BaseException as error:
            self.error = error
        finally:
            sys.settrace(was)
            for event in (self.done, *self._at_end):
                event.set()


# --- two calls -------------------------------------------------------------------------------------------


class _Patience:
    """How long to wait for a thread: less and less, if threads wait for each other again and again."""

    def __init__(self, at_least: float) -> None:
        self.seconds = max(_PATIENCE, 5 * at_least)
        self.least = max(_LEAST_PATIENCE, at_least)

    def shorten(self) -> None:
        self.seconds = max(self.least, self.seconds / 2)


class _Stop:
    """Stops a thread at a place until it is let go."""

    def __init__(self, place: _Place, patience: float) -> None:
        self.place, self.patience, self.times = place, patience, 0
        self.there, self.go = threading.Event(), threading.Event()

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        """For ``sys.settrace``."""
        if frame.f_code is not self.place.code or self.there.is_set():
            return None
        if self.place.line:
            return self._trace_lines
        return self._come()

    def _trace_lines(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and frame.f_lineno == self.place.line:
            self._come()
        return self._trace_lines

    def _come(self) -> None:
        self.times += 1
        if self.times == self.place.nth:
            self.there.set()
            self.go.wait(self.patience)


def _take_turns(calls: Calls, wanted: Sequence[Tree], place: _Place, patience: _Patience) -> None:
    """Both calls to the place, then the first to its end, then the second.

    A thread that waits for the other, as for a lock, is let go after a while.
    """
    stops = [_Stop(place, 2 * patience.seconds) for _ in calls]
    workers = [_Worker(call, stop.trace, stop.there) for call, stop in zip(calls, stops, strict=True)]
    late = False
    try:
        for worker, stop in zip(workers, stops, strict=True):
            worker.start()
            late = not stop.there.wait(patience.seconds) or late
        for worker, stop in zip(workers, stops, strict=True):
            stop.go.set()
            late = not worker.done.wait(patience.seconds) or late
    finally:  # also after KeyboardInterrupt: both threads come to their ends
        for stop in stops:
            stop.go.set()
        for worker in workers:
            if worker.ident is not None:
                worker.join(_LOST)
    if late:
        patience.shorten()
    _compare(workers, wanted)


def _compare(workers: Sequence[_Worker], wanted: Sequence[Tree]) -> None:
    """Raise the first that went wrong."""
    for t, (worker, want) in enumerate(zip(workers, wanted, strict=True)):
        if worker.error is not None:
            name = type(worker.error).__name__
            raise Broken(f"thread {t}: expected outputs as alone, got {name}: {worker.error}") from worker.error
        if not worker.done.is_set():
            broken(
                f"thread {t}: expected outputs as alone, got none in {_LOST:g} seconds: the threads block each other"
            )
        try:
            agree(worker.output, want, f"thread {t}", exact=True)
        except Broken:
            raise
        except Exception as error:  # on another device, say, where a race took the parameters away
            broken(f"thread {t}: expected outputs as alone, got others, which do not compare: {error}")
