"""MPI ranks: rank 0 runs the loop, then come the draft's ranks, then the target's (docs/ranks.md).

`config.layout` assigns the roles. `messages` defines the messages, `codec` writes and reads them,
`comm` holds all calls of MPI, and `bell` wakes a rank of the same host. `leader` is the side of
rank 0, `worker` that of the other ranks (its program is `launch`), and `group` the exchange inside
a group. `mpiexec` writes the command line, the launcher and the processes talk through
`run_folder`, and `shared_memory` removes what MPICH leaves behind.
"""
