"""The fast core: policies as flat programs over arrays, run by one compiled pass over the timeline.

`replay.core.interpreter` is the definition; whatever this room computes equals it to the bit, or is not covered and
left to the interpreter. Read `program.py` (a policy as instructions), `population.py` (candidates as columns),
`requests.py` (what calls ask, as tables), then `ranking.py` (one decision) and `loop.py` (all of them).
"""
