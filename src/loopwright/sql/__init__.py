"""SQL: the engine, the functions that a declared expression may call, and the expressions themselves."""
