"""Benchmarks: every row of the speed and memory targets, side by side in one run.

``python -m benchmarks.run --quick`` prints the table in about two minutes; ``make bench`` the whole of it.
"""
