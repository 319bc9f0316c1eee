"""python -m clients.chat: `judge-client chat` from a checkout."""

from judge_client.commands.chat import chat
from judge_client.commands.run import run

if __name__ == "__main__":
    run(chat, "chat")
