"""A strategy for tests: the champion goes on for half of the units, the new package answers the other half."""

from loopwright.deploy.strategies import Strategy
from loopwright.records.declarations import Canary

HALF = Strategy("half", "half of the units", [Canary(share=0.5)])
