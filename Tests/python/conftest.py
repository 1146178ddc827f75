"""Lets the tests import the bindings of this checkout and each other, and counts the cases of the laws."""

import functools
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent / "header", HERE.parents[1] / "bindings" / "python"):
    sys.path.insert(0, str(folder))

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

import tally  # noqa: E402

# The same examples in every run; a busy machine makes one slow, not wrong.
settings.register_profile(
    "gradaccum", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gradaccum")


def pytest_configure(config):
    config.addinivalue_line("markers", "law(*names): a test of these laws, for the table of make laws")


def laws_of(item):
    return [law for marker in item.iter_markers("law") for law in marker.args]


def counted(test):
    """A hypothesis test's body, which counts its examples."""

    @functools.wraps(test)
    def body(*arguments, **named):
        tally.case()
        return test(*arguments, **named)

    body.is_counted = True
    return body


def pytest_collection_modifyitems(items):
    for item in items:
        test = getattr(item.obj, "hypothesis", None)
        if test and laws_of(item) and not hasattr(test.inner_test, "is_counted"):
            test.inner_test = counted(test.inner_test)


def pytest_runtest_setup(item):
    tally.start_test()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    laws = laws_of(item)
    if laws and ((report.when == "call" and not report.skipped) or (report.when != "call" and report.failed)):
        tally.end_test(laws, report.failed)
    return report


def pytest_sessionfinish():
    tally.write()
