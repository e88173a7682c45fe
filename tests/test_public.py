"""The public surface is a short list: every name resolves, is documented, and costs nothing until it is used."""

import subprocess
import sys

import pytest

import loopwright


@pytest.mark.parametrize("name", loopwright.__all__)
def test_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(loopwright, name)
    assert value.__name__ == name
    assert (value.__doc__ or "").strip(), f"{name} has no docstring of its own"


def test_the_list_is_sorted_short_and_complete() -> None:
    assert sorted(loopwright.__all__) == loopwright.__all__
    assert len(loopwright.__all__) <= 32
    assert dir(loopwright) == loopwright.__all__


def declared(base: type) -> set[str]:
    subclasses: list[type] = base.__subclasses__()
    ours = [sub for sub in subclasses if sub.__module__.startswith("loopwright.")]
    return {sub.__name__ for sub in ours if not sub.__subclasses__()}.union(*map(declared, ours))


def test_whatever_a_loop_file_constructs_is_public() -> None:
    from loopwright.records.declarations import Declaration

    assert loopwright.Loop.__name__ in declared(Declaration)
    assert declared(Declaration) <= set(loopwright.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Pickle'"):
        _ = loopwright.Pickle


def test_importing_loopwright_loads_nothing() -> None:
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import loopwright\n"
        "print(*{m.partition('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["loopwright"]
