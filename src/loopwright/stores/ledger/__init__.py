"""The ledger: every artefact, decision and state change as one append-only record with its lineage.

About ten methods, however many concepts come: a new concept is a new `Record` type, not a new method.
"""
