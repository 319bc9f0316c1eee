"""Faults on a real server with real ranks: what the client sees, how long it takes, what is left.

python -m tests.faults                                 all of them, the table on stdout
python -m tests.faults --only disk --json F.json       one group (or one fault), added to F.json
python -m tests.faults --only none --json F.json --table docs/operations/faults.md

bench.py      servers to break, streams to watch, what is left
processes.py  ranks, stubs, server and launcher: killed, paused, slowed
network.py    clients that die, stop, vanish or send garbage; a TCP proxy between
disks.py      full disks under the log, the run folder, the ready file, /dev/shm
files.py      damaged configuration, models, tokenizers and judges
table.py      the table

`tests/faults/test_faults.py` runs a part of them in the suite.
"""
