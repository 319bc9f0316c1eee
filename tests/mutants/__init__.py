"""Mutants: one token of a module is changed, and the module's tests must fail.

python -m tests.mutants                              every module of modules.yaml, 24 mutants each
python -m tests.mutants --only sampling --count 0    one module, every mutant that it has

operators.py     the changes, on the syntax tree
runner.py        a warm process that forks for each mutant
modules.yaml     which tests belong to which module
equivalent.yaml  mutants that change nothing observable, each with the reason

The sample follows from the seed. A mutant that exceeds its time limit counts as noticed.
"""
