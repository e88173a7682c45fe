"""How answers look, once for every door: values in words, charts, reports, notebooks. Numbers and moments are in `base/text.py`."""
