"""The lake: Delta tables, and the seals that make their commits durable."""
