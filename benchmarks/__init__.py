"""Benchmarks: all rows of the table in ``RESULTS.md``, in one run.

``python -m benchmarks.run --quick`` prints a short form in about two minutes; ``make bench`` prints the whole table.
"""
