"""Every public name is documented, and every example in a docstring runs."""

import doctest
import importlib
import inspect
import pkgutil

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
    signature_holder = next(base for base in cls.__mro__ if "__init__" in vars(base))
    described = inspect.getdoc(signature_holder)
    assert "Raises:" in described
    for argument in inspect.signature(cls).parameters:
        assert f"\n    {argument}: " in described, f"{argument} is not documented"
    assert signature_holder is cls or signature_holder.__name__ in docs


def test_every_public_name_has_a_docstring():
    for name in aida_lightning.__all__:
        assert inspect.getdoc(getattr(aida_lightning, name)), name
