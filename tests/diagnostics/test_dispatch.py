import copy
import pickle
import sys

import pytest
import torch

from aida_lightning.diagnostics import _dispatch, has_stepsize, stepsize

ADAPTER = """
from aida_lightning import stepsize
from {package}.optim import Mine

@stepsize.register
def _(optimizer: Mine, group, state):
    return state["v"]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Lay out an installed package with an optimizer and an entry point, and import the first."""

    def installed(package, name, value, adapter=ADAPTER):
        files = {
            f"{package}/__init__.py": "",
            f"{package}/optim.py": "class Mine: pass",
            f"{package}/adapter.py": adapter.format(package=package),
            f"{package}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {package}\n"
            "Version: 1.0\n",
            f"{package}-1.0.dist-info/entry_points.txt": "[aida_lightning.stepsize]\n"
            f"{name} = {value}\n",
        }
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        module = __import__(f"{package}.optim")
        return module.optim.Mine()

    yield installed
    for module in [name for name in sys.modules if name.startswith("aida_test_")]:
        del sys.modules[module]


@pytest.mark.parametrize("name", ["aida_test_{}.optim.Mine", "aida_test_{}.optim", "aida_test_{}"])
def test_an_entry_point_registers_for_a_class_when_it_is_met(install, name):
    name = name.format(name.count("."))
    package = name.split(".")[0]
    optimizer = install(package, name, f"{package}.adapter")
    assert not has_stepsize(torch.optim.SGD([torch.zeros(1)]))
    assert f"{package}.adapter" not in sys.modules
    assert has_stepsize(optimizer)
    assert stepsize(optimizer, {}, {"v": torch.ones(2)}).tolist() == [1, 1]


def test_an_entry_point_is_found_for_a_class_derived_from_the_one_it_names(install):
    base = type(install("aida_test_base", "aida_test_base.optim.Mine", "aida_test_base.adapter"))
    assert has_stepsize(type("Derived", (base,), {})())


def test_nothing_of_an_entry_point_is_imported_for_other_classes(install):
    optimizer = install("aida_test_other", "aida_test_other.optim.Min", "aida_test_other.adapter")
    assert not has_stepsize(optimizer)
    assert "aida_test_other.adapter" not in sys.modules


@pytest.mark.parametrize(
    ("package", "value", "adapter"),
    [
        ("aida_test_missing", "aida_test_missing.nowhere", ADAPTER),
        ("aida_test_attribute", "aida_test_attribute.adapter:nothing", ""),
        ("aida_test_raising", "aida_test_raising.adapter", "raise ValueError('out of order')"),
    ],
)
def test_a_broken_entry_point_is_named_in_a_warning_and_stops_nothing(
    install, package, value, adapter
):
    optimizer = install(package, package, value, adapter)
    with pytest.warns(UserWarning, match=f"'{package} = {value}' of the group aida_lightning"):
        assert not has_stepsize(optimizer)
    assert not has_stepsize(optimizer)  # and is told once


def test_what_a_user_registered_is_not_replaced_by_an_adapter(monkeypatch):
    def ours(optimizer, group, state):
        return torch.zeros(1)

    def yours(optimizer, group, state):
        return torch.ones(1)

    monkeypatch.setitem(_dispatch.adapters, __name__, lambda cls: stepsize.add(cls, ours))

    class Mine(torch.optim.SGD):
        pass

    class Yours(torch.optim.SGD):
        pass

    stepsize.register(Yours, yours)
    assert stepsize.dispatch(Mine) is ours
    assert stepsize.dispatch(Yours) is yours


def test_the_functions_are_pickled_and_copied_by_their_names():
    assert pickle.loads(pickle.dumps(stepsize)) is stepsize
    assert copy.deepcopy(stepsize) is stepsize


def test_only_functions_are_registered():
    with pytest.raises(TypeError, match="The function for"):
        stepsize.register(torch.optim.SGD, 3)
