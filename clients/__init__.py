"""Clients of a served deployment, and tools that start, show and measure one.

judge_client/  the gRPC client, a distribution of its own
generate.py    python -m clients.generate, chat and probe: the client's commands from a checkout
demo.py        python -m clients.demo --config FILE
server.py      a server started for a tool, and stopped behind it
load/          python -m clients.load.bench_server, soak, overload, replicas, perf
"""
