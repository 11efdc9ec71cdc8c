"""Which settings, put back to what they were, make a new engine agree with the old one again?

In: two configurations, and a way to run a workload. Out: the smallest restoring set, reports, a pack that fails again
elsewhere. No engine is known here: a trial is a function of the settings that are put back.
"""
