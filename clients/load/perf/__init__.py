"""Load tests with Triton's perf_analyzer: latency and throughput of every rule under load.

inputs.py    prompts -> perf_analyzer's input file
analyzer.py  the program: where it is, its command line, one run of it
export.py    its profile export -> timed answers
figures.py   timed answers -> TTFT, ITL, TPOT, tokens per second
sweep.py     many points on one server, interleaved
load.py      python -m clients.load.perf run
report.py    the report as tables, and its figure
compare.py   python -m clients.load.perf compare A.json B.json
tune.py      python -m clients.load.perf tune
schedule.py  measured curves -> draft_len_schedule
recipes/     genai-perf and AIPerf against the same server

docs/operations/load.md has the commands and the definitions.
"""
