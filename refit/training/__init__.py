"""The loop, what it reads, and what makes it repeatable.

loop          the epochs, and what is kept of them         plan        what is decided before it begins
step          one step; `shards` on several processes      state       what a killed training goes on from
features      batches of a phase; `frozen` layers run once cache       what was computed once, on disk
examples      from files to arrays                         arithmetic  fp32 or bf16, and threads, by a probe
optimizer     rates, schedule, average                     determinism randomness without state
start         the network before it learns                 embedding   an example as the base checkpoint sees it
"""

__all__ = [
    "arithmetic",
    "cache",
    "choices",
    "determinism",
    "embedding",
    "examples",
    "job",
    "lineage",
    "loop",
    "optimizer",
    "plan",
    "shards",
    "start",
    "state",
]
