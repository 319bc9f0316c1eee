"""The PyTorch engine: a drafter and a target that follow `decoding.contracts`."""
