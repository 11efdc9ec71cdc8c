"""A published engine migration, re-enacted: what four settings did to a training, and how their names are found.

In: a small model, the task of writing words backwards. Out: three trainings, their figure, the restoring settings; and
a study of whether a correction in the objective can stand in for a correct engine.
"""
