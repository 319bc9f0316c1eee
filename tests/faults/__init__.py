"""Faults on a real server with real ranks: what clients see, how long it takes, what is left.

python -m tests.faults                                 all faults, the table on stdout
python -m tests.faults --only disk --json F.json       one group (or one fault), added to F.json
python -m tests.faults --only none --json F.json --table docs/operations/faults.md

bench.py      servers to break, streams to watch, what is left
processes.py  ranks, stubs, server and launcher: killed, paused, slowed
network.py    clients that die, stop, vanish or send garbage; a TCP proxy for them
disks.py      full disks that hold the log, the run folder, the ready file, /dev/shm
files.py      damaged configuration, models, tokenizers and judges
table.py      the table

`tests/faults/test_faults.py` runs some of them in the suite.
"""
