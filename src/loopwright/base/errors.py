"""The tree of errors. Each carries facts and the next step; none knows HTTP or exit codes.

LoopwrightError
├── UsageError                  the request itself is wrong
│   ├── NameInvalid
│   ├── SettingInvalid
│   ├── DeclarationInvalid      one or more fields of a declaration; all of them at once
│   ├── ColumnUnknown           an option names a column that is not there
│   ├── RequestMalformed        the body is not strict JSON
│   ├── RequestTooLarge         more bytes or rows than are allowed
│   ├── RequestInvalid          one or more fields of a prediction request or an outcome
│   │   └── OptionInvalid       an option of a command or a parameter of a query
│   ├── ExtraMissing            an optional part of loopwright is not installed
│   └── NotSupported            the protocol has it, this server does not
├── NotFound
│   ├── HomeNotFound
│   ├── LoopNotFound
│   │   └── LoopFileNotFound
│   ├── SegmentNotFound
│   ├── PackageNotFound
│   ├── PredictionNotFound
│   ├── TableNotFound
│   ├── FileMissing
│   └── RecordNotFound
├── Refused                     understood, and the answer is no
│   ├── IngestRefused
│   ├── ExamplesRefused
│   ├── ConversionRefused       estimator and graph disagree, or a part has no converter
│   ├── CandidatesFailed        not one candidate of a turn could be fitted and converted
│   ├── PackageRefused          damaged, hostile or inconsistent package
│   ├── ExportRefused           a package that has no form for another server
│   ├── GateFailed
│   ├── ReleaseBlocked          passed its checks, and may not be released now
│   ├── ReleaseConflict         another change of the release came first
│   ├── TurnRunning             another process runs a turn of the loop
│   ├── RequestConflict         the same request id again, with another body
│   ├── RequestRefused          a server did not answer a client's request, and would not if it were sent again
│   ├── NotExplained            a package whose answers have no exact explanation
│   └── AddressRefused          an address or webhook target that is not allowed
├── Unavailable                 a part is down or full; trying again may help
│   ├── LedgerUnavailable
│   ├── LogUnavailable
│   └── Overloaded
├── LibraryChanged              a private part of a library that is used here is not there in the installed version
└── Damaged                     stored bytes are not those that were written
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple


class LoopwrightError(Exception):
    """Base of everything loopwright raises on purpose. `code` is its name on the wire and with `--json`: the class's in snake case."""

    code = "loopwright_error"

    def __init_subclass__(cls) -> None:
        cls.code = re.sub("(?<=.)(?=[A-Z])", "_", cls.__name__).lower()


class UsageError(LoopwrightError):
    """The request itself is wrong: correct it and try again."""


class NotSupported(UsageError):
    """The protocol defines it, but this server does not support it."""


class NameInvalid(UsageError):
    """A name outside `^[a-z0-9][a-z0-9._-]{0,63}$`."""

    def __init__(self, what: str, name: str) -> None:
        self.what, self.name = what, name
        super().__init__(
            f"{what} {name[:80]!r} is not valid: 1 to 64 characters of a-z, 0-9, '.', '_', '-', beginning with a letter or digit"
        )


class SettingInvalid(UsageError):
    """A setting has an invalid value."""

    def __init__(self, name: str, value: str, why: str) -> None:
        self.name, self.value, self.why = name, value, why
        super().__init__(f"setting {name} = {value!r}: {why}")


class FieldProblem(NamedTuple):
    """A field's path, e.g. `scope.objectives[0].metric`, and the problem with it."""

    field: str
    reason: str


class DeclarationInvalid(UsageError):
    """A declaration with one or more wrong fields, all named at once."""

    def __init__(self, what: str, problems: Sequence[tuple[str, str]]) -> None:
        self.what, self.problems = what, [FieldProblem(*p) for p in problems]
        super().__init__(f"{what} is not valid:\n" + "\n".join(f"  {p.field}: {p.reason}" for p in self.problems))


class RequestMalformed(UsageError):
    """A body that is not strict JSON: not UTF-8, cut off, too deep, a key twice, NaN or a number that no float holds; a bad header."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"the request cannot be read: {why}")


class RequestTooLarge(UsageError):
    """A request with more bytes or rows than are allowed."""

    def __init__(self, what: str, most: int) -> None:
        self.what, self.most = what, most
        super().__init__(f"the request has more than {most:,} {what}; send it in parts")


class RequestInvalid(UsageError):
    """Fields of a request violate the contract; at most 20 are named."""

    def __init__(self, problems: Sequence[tuple[str, str]], *, what: str = "the request") -> None:
        self.problems = [FieldProblem(*p) for p in problems[:20]]
        super().__init__(f"{what} breaks the contract: " + "; ".join(f"{p.field}: {p.reason}" for p in self.problems))


class OptionInvalid(RequestInvalid):
    """An option of a command, or a query parameter, has an invalid value."""

    def __init__(self, name: str, value: object, why: str) -> None:
        self.problems = [FieldProblem(name, why)]
        UsageError.__init__(self, f"--{name} {str(value)[:80]} {why}")


class ExtraMissing(UsageError):
    """An optional part of loopwright is not installed."""

    def __init__(self, extra: str, purpose: str) -> None:
        self.extra, self.purpose = extra, purpose
        super().__init__(f"{purpose} needs an extra: pip install 'loopwright[{extra}]'")


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The most similar of the `known` names; the first three when none is similar."""
    names = list(known)
    return get_close_matches(name[:200], names, 3, 0.4) or names[:3]


def nearest_paths(path: Path) -> list[str]:
    """Suggest similar paths for a missing one: correct its first missing part to a name that exists in that folder."""
    absolute = path.absolute()
    missing = next((part for part in [*reversed(absolute.parents), absolute] if not os.path.lexists(part)), None)
    if missing is None:
        return []
    try:
        names = [entry.name for entry in missing.parent.iterdir()]
    except OSError:
        return []
    rest, whole = absolute.relative_to(missing), str(path)
    stem = whole.removesuffix(str(missing.name / rest))
    found = (stem + str(name / rest) for name in map(Path, get_close_matches(missing.name, names, 3, 0.6)))
    return [name for name in found if os.path.lexists(name)]


class ColumnUnknown(UsageError):
    """An option names a column that a file or table lacks; suggests similar ones."""

    def __init__(self, option: str, name: str, columns: Iterable[str]) -> None:
        there = list(columns)
        near = get_close_matches(name[:200], there, 3, 0.6)
        more = f" and {len(there) - 20:,} more" if len(there) > 20 else ""
        said = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(there[:20])}{more}"
        super().__init__(f"{option} {name[:80]!r}: there is no such column; {said}")


class NotFound(LoopwrightError):
    """No object with the requested name."""

    def __init__(self, what: str, name: str, *, near: Sequence[str] = (), next_step: str = "") -> None:
        self.what, self.name, self.near, self.next_step = what, name, list(near), next_step
        message = f"no {what} {name[:80]!r}"
        if near:
            message += f" - nearest: {', '.join(near)}"
        if next_step:
            message += f"; {next_step}"
        super().__init__(message)


class HomeNotFound(NotFound):
    """The folder has no home, which a command needs that reads or changes one."""

    def __init__(self, path: str) -> None:
        super().__init__(
            "home",
            path,
            next_step="`loopwright init NAME --from FILE` begins a loop here; --home or LOOPWRIGHT_HOME names another home",
        )


class LoopNotFound(NotFound):
    """No loop of that name in the ledger."""

    def __init__(self, name: str, near: Sequence[str] = ()) -> None:
        super().__init__(
            "loop",
            name,
            near=near,
            next_step="list them with `loopwright status`; a loop file is made known by `loopwright run FILE`",
        )


class LoopFileNotFound(LoopNotFound):
    """No loop file at a path; suggests similar paths."""

    def __init__(self, path: Path) -> None:
        super(LoopNotFound, self).__init__(
            "loop file", str(path), near=nearest_paths(path), next_step="`loopwright init NAME --from FILE` drafts one"
        )


class SegmentNotFound(NotFound):
    """The request names a segment that has no package of its own."""

    def __init__(self, segment: str, known: Iterable[str]) -> None:
        super().__init__(
            "package of segment", segment, near=nearest(segment, known), next_step="the loop's own package answers it"
        )


class PackageNotFound(NotFound):
    """No package, or more than one, whose digest begins like that."""

    def __init__(
        self,
        name: str,
        near: Sequence[str] = (),
        *,
        what: str = "package",
        next_step: str = "list them with `loopwright leaderboard LOOP`",
    ) -> None:
        super().__init__(what, name, near=near, next_step=next_step)


class FileMissing(NotFound):
    """No file at a path that the user named; suggests similar names in its folder."""

    def __init__(self, path: Path, *, why: str = "") -> None:
        shown = str(path) if len(str(path)) <= 80 else f"...{str(path)[-77:]}"
        super().__init__("file", shown, near=[] if why else nearest_paths(path), next_step=why)


class PredictionNotFound(NotFound):
    """No prediction with that id in the log."""

    def __init__(self, id: str, why: str = "") -> None:
        super().__init__("prediction", id, next_step=why or "an id is the 32 hexadecimal digits that came with the answer")


class TableNotFound(NotFound):
    """No table of that name."""

    def __init__(self, name: str, near: Sequence[str] = (), *, is_empty: bool = False) -> None:
        step = f"`loopwright ingest {name[:80]} FILE --loop LOOP`"
        step = f"nothing was ingested into it in this home: {step}" if is_empty else f"declare it in the loop file, then {step}"
        super().__init__("table", name, near=near, next_step=step)


class RecordNotFound(NotFound):
    """No ledger entry with that id."""

    def __init__(self, id: str) -> None:
        super().__init__("record", id, next_step="see `loopwright status` and `loopwright history LOOP`")


class Refused(LoopwrightError):
    """The request was understood and refused."""


class IngestRefused(Refused):
    """A file cannot be ingested; no row of it was written."""

    def __init__(self, source: str, why: str) -> None:
        self.source, self.why = source, why
        super().__init__(f"{source} was not ingested: {why}")


class ExamplesRefused(Refused):
    """No usable examples can be built."""


class ConversionRefused(Refused):
    """An estimator has no exact conversion to a graph."""

    def __init__(self, candidate: str, why: str) -> None:
        self.candidate, self.why = candidate, why
        super().__init__(f"candidate {candidate!r} cannot become one graph: {why}")


class CandidatesFailed(Refused):
    """No candidate of a turn could be fitted and converted; names each with its reason."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = [f"{name}: {why}" for name, why in reasons.items()]
        super().__init__("no candidate is left:\n" + "\n".join(f"  {line}" for line in self.reasons))


class PackageRefused(Refused):
    """A package that is damaged, hostile or inconsistent."""

    def __init__(self, package: str, why: str) -> None:
        self.package, self.why = package, why
        super().__init__(f"package {package[:12]} refused: {why}")


class ExportRefused(Refused):
    """A package cannot be exported in the requested format."""

    def __init__(self, package: str, why: str) -> None:
        self.package, self.why = package, why
        super().__init__(f"package {package[:12]} cannot be exported: {why}")


class GateFailed(Refused):
    """A package failed the checks before release."""

    def __init__(self, package: str, reasons: Sequence[str], next_step: str = "") -> None:
        self.package, self.reasons, self.next_step = package, list(reasons), next_step
        super().__init__(
            f"package {package[:12]} did not pass the gate: " + "; ".join([*reasons, *([next_step] if next_step else [])])
        )


class ReleaseBlocked(Refused):
    """A package passed its checks, and its release may not begin now."""

    def __init__(self, package: str, reasons: Sequence[str], next_step: str) -> None:
        self.package, self.reasons, self.next_step = package, list(reasons), next_step
        super().__init__(f"package {package[:12]} is not released now: {'; '.join(reasons)}; {next_step}")


class ReleaseConflict(Refused):
    """Another change of the release came first."""

    def __init__(self, name: str, expected: int, actual: int) -> None:
        self.name, self.expected, self.found = name, expected, actual
        super().__init__(
            f"{name} is at generation {actual}, not {expected}: somebody changed it first; look at it and try again"
        )


class TurnRunning(Refused):
    """Another process runs a turn of the loop."""

    def __init__(self, loop: str, holder: str) -> None:
        self.loop, self.holder = loop, holder
        super().__init__(
            f"another turn of loop {loop!r} is running ({holder}): wait until it ends, then look at it and try again"
        )


class RequestConflict(Refused):
    """The request id was already used with another body."""

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(
            f"id {id} was answered already, for another request; a retry sends the same body, anything else a new id"
        )


class RequestRefused(Refused):
    """The server answered `loopwright.Client` with an error; sending the same request again gives the same error.

    `status`: HTTP status. `code`: the server's error code. `problems`: the invalid fields. `id`: the request's id.
    """

    def __init__(self, status: int, code: str, message: str, id: str = "", problems: Sequence[tuple[str, str]] = ()) -> None:
        self.status, self.code, self.id, self.problems = status, code, id, [FieldProblem(*p) for p in problems]
        fields = "".join(f"; {p.field}: {p.reason}" for p in self.problems)
        super().__init__(f"the server answered {status} ({code}): {message}{fields}")


class NotExplained(Refused):
    """The package's answers have no exact explanation."""

    def __init__(self, package: str, why: str) -> None:
        self.package, self.why = package, why
        super().__init__(f"package {package[:12]} does not explain its answers: {why}")


class AddressRefused(Refused):
    """An address must not be bound or called."""


class Unavailable(LoopwrightError):
    """A part is down or full; trying again may help."""


class LedgerUnavailable(Unavailable):
    """The ledger does not answer."""


class LogUnavailable(Unavailable):
    """The prediction log cannot be written."""


class Overloaded(Unavailable):
    """The load exceeds a limit."""


class LibraryChanged(LoopwrightError):
    """A private part of a library that is used here is not there in the installed version."""

    def __init__(self, library: str, version: str, name: str, needed_by: str) -> None:
        self.library, self.version, self.name, self.needed_by = library, version, name, needed_by
        super().__init__(
            f"{library} {version} has no `{name}` any more, which is needed for {needed_by}: install an older {library} "
            f"(pip install '{library}<{version}'), or a newer loopwright; everything else works"
        )


class Damaged(LoopwrightError):
    """Stored bytes are not those that were written."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, at most 200 characters."""
    return (message_of(error).strip().splitlines() or [type(error).__name__])[0][:200]


def message_of(error: BaseException) -> str:
    """The message of an exception; empty when a user's own `__str__` fails."""
    try:
        return str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001  # whatever it raises
        return ""
