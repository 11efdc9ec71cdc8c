"""Runs of other frameworks, as they lie on disk, made into observations that the auditor can look at.

In: files that TRL, verl, prime-rl, PipelineRL, vLLM or Lockstep wrote. Out: `ForeignRun`s, which say what their columns
allow to be asked and what not.

    files -> detection.py: which format?      by content
          -> trl | verl | prime_rl | episodes | pipeline_rl | pipeline_batches | responses | own .py: one reader each
               lines.py: values of JSON, streamed      row.py: columns with checked types      turns.py: samples
          -> run.py: ForeignRun.observations(), one step at a time
          -> audit.py: coverage, permissions, the passive probes

What a file does not have stays None. A line that is cut off at the end is noted and the rest is used; what is damaged
before the end is an error that names file, line and column.
"""
