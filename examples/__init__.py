"""Whole programs on Lockstep: each folder is one, with a README and the results that it printed."""
