"""MPI ranks: rank 0 runs the loop, then come the draft's ranks, then the target's (docs/ranks.md).

`layout` who is who, `messages` what travels, `codecs`, `values` and `wire` how it is written,
`comm` all of MPI, `leader` rank 0's side, `worker` the others', `group` the exchange in a group.
"""
