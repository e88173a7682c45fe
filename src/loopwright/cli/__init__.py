"""A door: the command line. It translates and decides nothing."""
