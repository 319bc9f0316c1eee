"""python -m clients.probe: `judge-client probe` from a checkout."""

from judge_client.commands.probe import probe
from judge_client.commands.run import run

if __name__ == "__main__":
    run(probe, "probe")
