"""Measuring a server: load, endurance, overload. Each tool starts a server of its own.

bench_server.py    through Triton and MPI against the loop in one process
soak.py            mixed load for minutes: memory, stuck requests, failures
overload.py        more load than the server can take
replicas.py        two replicas behind nginx
perf/              latency and throughput with perf_analyzer: run | compare | tune

mixed_requests.py  requests of every kind, and a check of their answers
memory.py          whether the server's memory grows
report.py          bounds and provenance of a report
command.py         a tool as a command

Unlike the clients, these tools import the library: for prompts, deployments and provenance.
"""
