"""Rendering of answers, shared by all interfaces: values in words, charts, reports, notebooks. Numbers and moments are in `base/text.py`."""
