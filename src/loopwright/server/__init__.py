"""A door: HTTP. It translates and decides nothing: predictions come from `deploy`, everything else from the table of verbs."""
