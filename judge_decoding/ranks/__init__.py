"""MPI ranks: rank 0 runs the loop, then come the draft's ranks, then the target's (docs/ranks.md).

`layout` assigns the roles. `messages` defines the messages, `codec` writes and reads them, `comm`
holds all calls of MPI, and `bell` wakes a rank of the same host. `leader` is rank 0's side, `worker`
the other ranks' (its program is `launch`), and `group` the exchange inside a group. `mpiexec` writes
the command line, `run_folder` is how the launcher and the processes talk, and `shared_memory` removes
what MPICH leaves behind.
"""
