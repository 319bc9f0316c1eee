"""Faults on a real server with real ranks: what clients see, how long it takes, what is left.

python -m tests.faults                                 all faults, the table on stdout
python -m tests.faults --only disk --json F.json       one group (or one fault), added to F.json
python -m tests.faults --only none --json F.json --table docs/operations/faults.md

bench.py          servers to break, streams to watch, what is left
processes.py      ranks, stubs, server and launcher: killed, paused, slowed
network.py        clients that die, stop, vanish or send garbage; a TCP proxy for them
attack.py         a row that is tried beside another client's stream (tests/attacks/canary.py)
requests.py       requests that are too large or too odd, for all models
crowds.py         many requests at once, ids of others, signed orders, what gRPC itself allows
http_requests.py  HTTP that lies about its length, never ends, or asks for what is not served
http2.py          HTTP/2 frames by hand
disks.py          full disks that hold the log, the run folder, the ready file, /dev/shm
files.py          damaged configuration, models, tokenizers and judges
table.py          the table; words.py cuts its messages

`tests/faults/test_faults.py` runs some of them in the suite.
"""
