"""The prediction path: what a worker does with a request, without HTTP."""
