"""Differences between tasks: one file a task, listed in `table`; labels, metrics, plausibility, and the split of examples."""
