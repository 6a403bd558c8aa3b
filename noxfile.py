"""The tests on the oldest releases that pyproject.toml allows, and on the newest.

Needs ``pip install nox uv``. Arguments after ``--`` go to pytest, as in
``nox -s oldest -- tests/callbacks``.
"""

import nox

nox.options.default_venv_backend = "uv"


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """Run the tests on the lower bounds of all that pyproject.toml names."""
    # What releases of then import and do not ask for, setuptools' pkg_resources.
    session.install("--resolution=lowest-direct", "-e", ".[test]", "setuptools>=77,<82")
    # The newest releases of what they depend on deprecate what they call.
    session.run("pytest", "-W", "ignore::DeprecationWarning", *session.posargs)


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """Run the tests on the newest releases."""
    session.install("--upgrade", "-e", ".[test]")
    session.run("pytest", *session.posargs)
