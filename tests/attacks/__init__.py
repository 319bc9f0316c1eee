"""Attacks on a real server, beside a canary stream whose gaps are measured.

python -m tests.attacks --cases 10000 --seed 7        almost right requests from a grammar
python -m tests.attacks --minutes 30 --json F.json    mixed attacks, and what has grown afterwards

canary.py   the stream, in a process of its own
wire.py     requests as no client of ours would make them
odd.py      changes to right requests
grammar.py  requests that are almost right, from a seed
fuzz.py     sends them over gRPC and HTTP, and to the internal models
usage.py    memory, shared memory, descriptors, threads and slots of a server
soak.py     the mix

The rows of the faults' table that are attacks are in `tests/faults`.
"""
