"""The processes of a server: supervisor, workers, console and upkeep."""
