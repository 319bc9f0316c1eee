"""MPI ranks: rank 0 runs the loop, then come the draft's ranks, then the target's (docs/ranks.md).

`config.layout`                    assigns the roles
`messages`, `codec`                the messages, and how they are written and read
`comm`, `bell`                     all calls of MPI; wake-ups on one host
`leader`, `worker`, `group`        rank 0's side, the other ranks', the exchange inside a group
`launch`, `mpiexec`                a rank's program, the command line of all ranks
`run_folder`, `shared_memory`      how launcher and processes talk; what MPICH leaves behind
"""
