"""From a source of rows into a table, through its contract."""
