"""Lets the tests import the bindings of this checkout and each other."""

import sys
from pathlib import Path

from hypothesis import settings

# A busy machine makes an example slow, not wrong.
settings.register_profile("gradaccum", deadline=None)
settings.load_profile("gradaccum")

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent / "header", HERE.parents[1] / "bindings" / "python"):
    sys.path.insert(0, str(folder))
