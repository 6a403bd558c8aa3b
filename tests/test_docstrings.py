"""Every public name is documented, and every example in a docstring runs."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re

import pytest
import reference

import aida_lightning
from aida_lightning import optim

MODULES = [
    info.name
    for info in pkgutil.walk_packages(aida_lightning.__path__, "aida_lightning.")
    if not info.name.endswith("__main__")
]
OPTIMIZERS = [*reference.MEMBERS, "Yogi", "MSVAG", "Fromage"]


@pytest.mark.parametrize("name", ["aida_lightning", *MODULES])
def test_examples_in_docstrings_run(name):
    if name.endswith("triton_sweeps"):
        pytest.importorskip("triton")
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_an_equation_an_example_and_a_source(name):
    cls = getattr(optim, name)
    docs = inspect.getdoc(cls)
    assert ".. math::" in docs
    assert f">>> optimizer = {name}(" in docs
    assert "arXiv" in docs or "NeurIPS" in docs
    assert "Raises:" in docs


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_argument_of_an_optimizer_is_described_with_its_default(name):
    docs = inspect.getdoc(getattr(optim, name))
    _, _, arguments = docs.partition("\nArgs:\n")
    described = dict(re.findall(r"^ {4}(\w+): ((?:.|\n {8})+)", arguments, flags=re.MULTILINE))
    for argument, parameter in inspect.signature(getattr(optim, name)).parameters.items():
        assert argument in described
        if isinstance(parameter.default, tuple | float) or argument == "k":
            text = " ".join(described[argument].split())
            (default,) = re.findall(r"(\([^:)]*\)|[\d.e-]+) by default", text)
            assert ast.literal_eval(default) == parameter.default


def test_every_public_name_has_a_docstring():
    for name in aida_lightning.__all__:
        assert getattr(aida_lightning, name).__doc__, name  # getdoc would give a base class's
