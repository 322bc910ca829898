"""What pytest and hypothesis load, in every project where functional_marl is installed.

A package of its own, so that both start without importing torch: ``functional_marl`` is used only where the project
has imported it already.
"""
