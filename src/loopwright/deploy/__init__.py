"""4 deploy: checks before release, who serves, and the prediction path itself (no HTTP in it)."""
