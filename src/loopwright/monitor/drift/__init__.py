"""Drift: whether a window's inputs and answers differ from those of training by more than windows usually differ.

`distances` shows how far, `measures` is what is judged of a column, `limits` is from where it counts, `baseline` what was usual
in training, `impact` how much a column moves the answers.
"""
