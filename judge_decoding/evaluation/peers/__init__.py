"""Other programs that run the same weights on the same prompts, for the benchmark."""
