"""Clients of a served deployment. They know its wire contract alone: nothing of the library.

wire.py          requests and answers as Triton tensors
client.py        JudgeClient: generate, stream, cancel
async_client.py  AsyncJudgeClient: the same with asyncio
generate.py      python -m clients.generate -u HOST:PORT --prompt TEXT
chat.py          python -m clients.chat -u HOST:PORT
bench_server.py  python -m clients.bench_server --config FILE
soak.py          python -m clients.soak --config FILE --minutes 15
perf/            python -m clients.perf run | compare | tune
probe.py         python -m clients.probe -u HOST:PORT
replicas.py      python -m clients.replicas --config FILE
"""
