"""The judge on TensorRT-LLM's PyTorch backend: an out-of-tree model, and the folder it reads.

`rows` is the arithmetic, `compat` all uses of upstream, `model` the model class; `judged_target`,
`options` and `prepare` are what `build/prepare_pytorch_target.py` writes. docs/h100-pytorch.md
shows them in use.
"""
