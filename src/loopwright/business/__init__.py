"""Stage 6, business: what the loop is worth, what it costs, and the report that says both."""
