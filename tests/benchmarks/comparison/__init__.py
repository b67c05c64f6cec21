"""The comparison of all methods on the mini base; `experiment.py` beside this folder runs it."""
