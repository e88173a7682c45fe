"""A first loop file, drafted from a file of rows."""
