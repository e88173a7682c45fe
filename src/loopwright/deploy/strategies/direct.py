"""`direct`: the new package answers every unit at once."""

from loopwright.deploy.strategies.strategy import Strategy

DIRECT = Strategy("direct", "replaces what serves at once")
