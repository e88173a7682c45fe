"""The prediction path of a worker, without HTTP."""
