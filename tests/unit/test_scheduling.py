"""The engine in a node id, and what the scheduler does with whole engines."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.scheduling import engine_in, make_scheduler

NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True)


@given(engine=NAME, others=st.lists(NAME), path=st.sampled_from(["a/test_b.py", "[x]/test_y.py"]))
def test_a_test_with_its_engine_alone_is_always_recognised(engine, others, path):
    assert engine_in(f"{path}::TestC::test_d[{engine}]", [engine, *others]) == engine


@pytest.mark.parametrize(
    ("nodeid", "engine"),
    [
        ("suites/test_a.py::test_b[fp8-burst]", "fp8"),
        ("suites/test_a.py::test_b[fp8-kv-burst]", "fp8-kv"),
        ("suites/test_a.py::test_b[x-fp8]", "fp8"),
        ("suites/test_a.py::test_b[fp8-two]", "fp8"),
        ("suites/test_a.py::test_b[fp8.5]", None),
        ("suites/test_a.py::test_fp8", None),
        ("suites/fp8/test_a.py::test_b", None),
        ("[fp8]/test_a.py::test_b", None),
    ],
)
def test_the_engine_is_the_first_parameter_that_fits_and_the_longest(nodeid, engine):
    assert engine_in(nodeid, ["fp8", "fp8-kv", "two"]) == engine


class Node:
    """As much of a worker as a scheduler uses."""

    def __init__(self):
        self.gateway = SimpleNamespace(id=f"gw{id(self)}")
        self.shutting_down = False
        self.sent = []
        self.gateway = SimpleNamespace(id="gw")

    def send_runtest_some(self, indices):
        self.sent.extend(indices)

    def shutdown(self):
        self.shutting_down = True


TESTS = ["t.py::plain", "t.py::a[one]", *(f"t.py::b[two-{i}]" for i in range(3)), "t.py::c[three]", "t.py::d[three]"]


@pytest.fixture
def schedule(pytestconfig, monkeypatch):
    """``schedule(2)`` gives a scheduler of TESTS for two workers, which have got their first tests."""
    pytest.importorskip("xdist")

    def make(count):
        monkeypatch.setattr(pytestconfig.option, "tx", ["popen"] * count)
        scheduler = make_scheduler(pytestconfig, None, ["one", "two", "three"])
        nodes = [Node() for _ in range(count)]
        for node in nodes:
            scheduler.add_node(node)
            scheduler.add_node_collection(node, TESTS)
        scheduler.schedule()
        return scheduler, nodes

    return make


def given_to(node):
    return [TESTS[index] for index in node.sent]


def run_one(scheduler, node):
    index = next(i for i in node.sent if i not in getattr(node, "done", []))
    node.done = [*getattr(node, "done", []), index]
    scheduler.mark_test_complete(node, index)


def test_plain_tests_go_first_then_the_engine_with_most_tests(schedule):
    _, (node,) = schedule(1)
    assert given_to(node) == ["t.py::plain", "t.py::b[two-0]", "t.py::b[two-1]", "t.py::b[two-2]"]


def test_an_engine_is_given_to_one_worker_and_the_next_one_just_before_it_is_done(schedule):
    scheduler, (node,) = schedule(1)
    for _ in range(2):
        run_one(scheduler, node)
    assert len(given_to(node)) == 4
    run_one(scheduler, node)
    assert given_to(node)[4:] == ["t.py::c[three]", "t.py::d[three]"]


def test_the_test_that_crashed_its_worker_is_reported_once_and_the_rest_goes_to_another(schedule):
    scheduler, (first, second) = schedule(2)
    owner = first if "t.py::b[two-0]" in given_to(first) else second
    while getattr(owner, "done", [])[-1:] != [TESTS.index("t.py::b[two-0]")]:
        run_one(scheduler, owner)
    assert scheduler.remove_node(owner) == "t.py::b[two-1]"
    replacement = Node()
    scheduler.add_node(replacement)
    scheduler.add_node_collection(replacement, TESTS)
    scheduler.schedule()
    other = second if owner is first else first
    while other.sent and len(getattr(other, "done", [])) < len(other.sent):
        run_one(scheduler, other)
    while len(getattr(replacement, "done", [])) < len(replacement.sent):
        run_one(scheduler, replacement)
    run = [TESTS[i] for node in (first, second, replacement) for i in getattr(node, "done", [])]
    assert sorted(run) == sorted(set(TESTS) - {"t.py::b[two-1]"})
    assert not scheduler.workqueue
