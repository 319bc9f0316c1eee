"""Make the folder that TensorRT-LLM's PyTorch backend serves as the judged target.

    python build/prepare_pytorch_target.py --config configs/llama-8b-70b-h100x2.yaml --out FOLDER

docs/h100-pytorch.md shows it in use; judge_decoding/trtllm/pytorch/prepare.py does the work.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
