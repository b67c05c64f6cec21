"""The comparison of all methods on the mini base: `python -m tests.benchmarks.comparison --help`."""
