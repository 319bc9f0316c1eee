"""python -m clients.load.perf run | compare | tune"""

from clients.load import command
from clients.load.perf.compare import compare
from clients.load.perf.load import run
from clients.load.perf.tune import tune

if __name__ == "__main__":
    command.run([run, compare, tune], "perf")
