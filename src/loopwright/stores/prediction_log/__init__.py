"""The prediction log: one row per prediction, framed and checked on disk, then exactly once in a Delta table."""
