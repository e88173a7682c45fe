"""HTTP/1.1: sockets, limits, protocol."""
