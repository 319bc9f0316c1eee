"""Download a real pair of chat models, or check a pair of your own.

    python build/real_pair.py [--target PATH] [--draft PATH]

Qwen2.5-Coder-1.5B-Instruct and its 0.5B draft, 4-bit GGUF files, go into the cache folder: 1.6 GB.
After an interruption the same command continues. With a path, that model is taken instead, and a
deployment of the pair is written into the cache folder.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
