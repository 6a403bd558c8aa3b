import pytest
from processes import Processes


def _group(size):
    processes = Processes(size)
    yield processes
    processes.end()


@pytest.fixture(scope="session")
def two_processes():
    yield from _group(2)


@pytest.fixture(scope="session")
def three_processes():
    yield from _group(3)


@pytest.fixture(scope="session")
def four_processes():
    yield from _group(4)


@pytest.fixture(scope="session")
def eight_processes():
    yield from _group(8)
