"""Records: the types that stages exchange."""
