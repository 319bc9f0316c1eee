"""`judge-decoding chat`: a conversation with the target in a terminal."""

from __future__ import annotations

from contextlib import closing

from judge_decoding.commands.options import DEMO, Config, read_deployment
from judge_decoding.errors import UserError


def chat(config: Config = DEMO) -> None:
    """Talk to the target. /new forgets the conversation, /quit or Ctrl-D ends it."""
    from judge_decoding.commands import console
    from judge_decoding.pipeline import load_pipeline

    with closing(load_pipeline(read_deployment(config))) as pipeline:
        if not pipeline.tokenizer.has_chat_template:
            raise UserError(
                f"chat: {pipeline.tokenizer.folder} has no chat template, and a conversation needs "
                "one; put the model's chat_template.jinja there, or use judge-decoding generate"
            )
        console.converse(pipeline)
