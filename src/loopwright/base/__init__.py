"""Foundations of every part: clock, ids, errors, settings, files, locks, fail points. No machine learning here."""
