"""The same loop with durability `disk`: an answer leaves only once its record is on the disk."""

import msgspec
from benchmarks.serving.loop import loop as of_process

from loopwright import Release

loop = msgspec.structs.replace(of_process, name="flight-delay-disk", release=Release(durability="disk"))
