"""The comparison of all methods on the mini base; run it with `experiment.py` in the folder above."""
