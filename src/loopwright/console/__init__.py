"""A door: server-rendered web pages. It translates and decides nothing."""
