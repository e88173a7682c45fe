"""Environment files for MLflow in addition to `MLmodel`: `requirements.txt`, `conda.yaml` and `python_env.yaml`."""

from collections.abc import Sequence

FILES = ("requirements.txt", "conda.yaml", "python_env.yaml")
ENV = ("    env:", "      conda: conda.yaml", "      virtualenv: python_env.yaml")
"""Lines that name them in an `MLmodel`."""


def environment_files(python: str, requirements: Sequence[str]) -> dict[str, bytes]:
    """The three files, for a version of Python and requirements as pip writes them."""
    pip = "".join(f"{line}\n" for line in requirements)
    conda = (
        f"name: mlflow-env\nchannels:\n- conda-forge\ndependencies:\n- python={python}\n- pip\n- pip:\n"
        + "".join(f"  - {line}\n" for line in requirements)
    )  # fmt: skip
    virtual = f"python: {python}\nbuild_dependencies:\n- pip\ndependencies:\n- -r requirements.txt\n"
    return {"requirements.txt": pip.encode(), "conda.yaml": conda.encode(), "python_env.yaml": virtual.encode()}
