"""Scenarios that put the whole system under stress, and say in numbers what it stood.

In: a seed, a count. Out: findings. Only this folder may reach into a stage to break it.
"""

from __future__ import annotations
