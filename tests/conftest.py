"""What every test shares: one hypothesis profile. A first call builds caches, so examples have no deadline."""

from __future__ import annotations

import os

from hypothesis import settings

# CI draws the same examples every time; elsewhere new ones are drawn, and a failure prints how to repeat it.
settings.register_profile("lockstep", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("lockstep")
