"""What differs from task to task: one file a task, named in `table`; labels, metrics, what is plausible, which examples train."""
