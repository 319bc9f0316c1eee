"""python -m clients.generate: `judge-client generate` from a checkout."""

from judge_client.commands.generate import generate
from judge_client.commands.run import run

if __name__ == "__main__":
    run(generate, "generate")
