"""python -m clients.perf run | compare | tune"""

from clients import terminal
from clients.perf.compare import compare
from clients.perf.load import run
from clients.perf.tune import tune

if __name__ == "__main__":
    terminal.run([run, compare, tune], "perf")
