"""What differs from task to task: labels, metrics, what is plausible, which examples train."""
