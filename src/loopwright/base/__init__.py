"""What every part stands on: clock, ids, errors, settings, files, locks, fail points. It knows nothing of machine learning."""
