"""Outcomes: the truth about predictions, joined with them; and packages run again over whole tables."""
