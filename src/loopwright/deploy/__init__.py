"""4 deploy: checks before release, releases, and the prediction path itself (without HTTP)."""
