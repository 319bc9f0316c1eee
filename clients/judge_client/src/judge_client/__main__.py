"""`judge-client`, or python -m judge_client."""

import sys


def main() -> None:
    """Run the command line; one line and exit code 2 where the extra `cli` is not installed."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        print(
            f"judge-client: the commands need {error.name}; pip install 'judge-client[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    from judge_client.commands.chat import chat
    from judge_client.commands.generate import generate
    from judge_client.commands.probe import probe
    from judge_client.commands.run import run

    run([generate, chat, probe], "judge-client")


if __name__ == "__main__":
    main()
