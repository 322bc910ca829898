"""What tests of the example programs share: their files, their pictures, and Ctrl-C."""

from __future__ import annotations

import csv
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

BLUE, VERMILION, PALE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0xBF, 0xDD, 0xF2)


def read_metrics(out: Path) -> list[dict[str, str]]:
    with open(out / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_picture(path: Path, color: tuple[int, int, int]) -> None:
    """A PNG with this color in the area of the plot, outside of legends and titles."""
    from matplotlib import image  # the tests that use this skip where it is not installed

    pixels: Any = image.imread(path)
    height, width = pixels.shape[:2]
    middle = pixels[height // 8 : -height // 8, : 2 * width // 3, :3]
    assert (abs(middle * 255 - color).max(axis=-1) < 2).sum() > 50


def interrupt(command: list[str], out: Path, seconds: float) -> None:
    """Send Ctrl-C to a program once it has written a row of metrics, within so many seconds; it says so and ends."""
    # With a handler here the child has the default one, even if this process was started to ignore Ctrl-C.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        signal.signal(signal.SIGINT, previous)
    metrics, deadline = out / "metrics.csv", time.monotonic() + seconds
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 1):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert "Traceback" not in output
