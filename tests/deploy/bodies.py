"""Bad bodies for a prediction request of the small loop: (name, body, status, what must be named)."""

import json
from typing import Any, NamedTuple

from tests.deploy.loops import REQUESTS, flight


class Bad(NamedTuple):
    """A body, the HTTP status it must get, and words that the answer must hold (fields, or what is wrong)."""

    name: str
    body: bytes
    status: int
    words: tuple[str, ...]


def text(value: Any) -> bytes:
    return json.dumps(value).encode()


def _raw(**raw: str) -> bytes:
    """A request in which some values are written as they stand."""
    row: dict[str, Any] = flight()
    return ("{" + ",".join(f'"{n}":{raw.get(n) or json.dumps(v)}' for n, v in row.items()) + "}").encode()


def malformed() -> list[Bad]:
    good = text(flight())
    cases: dict[str, bytes] = {
        "empty": b"",
        "space": b"  \n ",
        "word": b"hello",
        "byte order mark": b"\xef\xbb\xbf" + good,
        "utf-16": good.decode().encode("utf-16"),
        "not utf-8": good.replace(b"UA1", b"\xff\xfe"),
        "trailing": good + b"x",
        "two documents": good + good,
        "single quotes": good.replace(b'"', b"'"),
        "comment": b"/* */" + good,
        "trailing comma": good[:-1] + b",}",
        "control character": good.replace(b"UA1", b"U\x01A"),
        "lone surrogate": good.replace(b"UA1", rb"\ud800"),
        "low surrogate": good.replace(b"UA1", rb"\udc00x"),
        "bad escape": good.replace(b"UA1", rb"\x41"),
        "NaN": _raw(delay="NaN"),
        "Infinity": _raw(delay="Infinity"),
        "-Infinity": _raw(delay="-Infinity"),
        "leading zero": _raw(hour="09"),
        "plus": _raw(hour="+9"),
        "hexadecimal": _raw(hour="0x9"),
        "True": _raw(night="True"),
        "None": _raw(tail="None"),
        "number cut off": _raw(delay="1."),
        "deep list": b"[" * 100_000,
        "deep closed list": b"[" * 50_000 + b"]" * 50_000,
        "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "deep value": _raw(tail="[" * 50_000 + "]" * 50_000),
        "double key": good[:-1] + b',"delay":99.0}',
        "double key, same value": good[:-1] + b',"delay":12.5}',
        "double key, escaped": good[:-1] + rb',"del\u0061y":99.0}',
        "double key in a list": b"[" + good + b"," + good[:-1] + b',"hour":3}]',
        "double key behind an escape": good.replace(b"UA1", rb"U\"A")[:-1] + b',"hour":3}',
    }
    cases |= {f"cut off at {n}": good[:n] for n in (1, 2, 7, 20, len(good) - 1)}
    return [Bad(name, body, 400, ()) for name, body in cases.items()]


def wrong_values() -> list[Bad]:
    found = []
    wrong: dict[str, list[str]] = {
        "flight": ["1", "null", "true", '["UA1"]', "{}"],
        "pushed_back_at": [
            "1714554000",
            '"2024-05-01"',
            '"2024-05-01T09:00:00"',
            '"now"',
            "null",
            '"2024-13-01T00:00:00Z"',
            '""',
        ],
        "origin": ["1", "null"],
        "delay": ['"12.5"', "true", "null", "[1]", "{}", "1e400", "1" + "0" * 400, '""'],
        "hour": [
            "9.0",
            "9.5",
            "true",
            '"9"',
            "null",
            "1e2",
            "9223372036854775808",
            "-9223372036854775809",
            "99999999999999999999999999",
        ],
        "tail": ["1", "false", "[]"],
        "night": ["1", "0", '"true"', "null"],
    }
    for field, values in wrong.items():
        for value in values:
            # A number beyond float64 may be named as malformed JSON or as a wrong field; both are the client's to mend.
            status = 400 if value == "1e400" else 422
            found.append(Bad(f"{field} {value[:24]}", _raw(**{field: value}), status, (field,) if status == 422 else ()))
    return found


def wrong_shapes() -> list[Bad]:
    row = flight()
    found = [
        Bad("a number", b"5", 422, ("body",)),
        Bad("text", b'"x"', 422, ("body",)),
        Bad("null", b"null", 422, ("body",)),
        Bad("true", b"true", 422, ("body",)),
        Bad("no rows", b"[]", 422, ("body",)),
        Bad("empty object", b"{}", 422, tuple(n for n in REQUESTS.columns if n != "pushed_back_at")),
        Bad("rows are lists", text([[1, 2], [3]]), 422, ("[0]", "[1]")),
        Bad("rows are null", text([None, row]), 422, ("[0]",)),
        Bad("nested rows", text([[row]]), 422, ("[0]",)),
        Bad("wrapped", text({"data": [row]}), 422, ("data",)),
        Bad("columns", text({n: [v] for n, v in row.items()}), 422, ("delay", "hour")),
        Bad("second row wrong", text([row, {**row, "hour": "x"}]), 422, ("[1].hour",)),
        Bad("several fields", text({**row, "hour": "x", "delay": None, "night": 1}), 422, ("hour", "delay", "night")),
        Bad("extra", text({**row, "extra": 1}), 422, ("extra",)),
        Bad("renamed", text({("Delay" if n == "delay" else n): v for n, v in row.items()}), 422, ("delay", "Delay")),
        Bad("look-alike", text({("dеlay" if n == "delay" else n): v for n, v in row.items()}), 422, ("delay",)),
        Bad("key with NUL", text({**row, "delay\0": 1.0}), 422, ("is not in the contract",)),
        Bad("prototype", text({**row, "__proto__": {}, "__class__": "x"}), 422, ("__proto__", "__class__")),
        Bad("ten kilobytes of a name", text({**row, "x" * 10_000: 1}), 422, ("xxx",)),
        Bad("many extra", text({**row, **{f"x{i}": i for i in range(1000)}}), 422, ("x0",)),
        Bad("many wrong rows", text([{}] * 1000), 422, ("[0].flight",)),
        Bad("too many rows", b"[" + b",".join([text(row)] * 10_001) + b"]", 413, ("10,000",)),
        Bad("too many wrong rows", b"[" + b",".join([b"{}"] * 10_001) + b"]", 413, ("10,000",)),
    ]
    needed = [name for name in row if name != "pushed_back_at"]
    return found + [Bad(f"without {x}", text({n: v for n, v in row.items() if n != x}), 422, (x,)) for x in needed]


BAD: list[Bad] = [*malformed(), *wrong_values(), *wrong_shapes()]
