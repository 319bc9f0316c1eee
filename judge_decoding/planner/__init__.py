"""What a deployment needs and will do before it is bought: memory per GPU and expected speed.

`shapes` the models, `gpus` the machines and what of them is reached, `roofline` the time of a
pass, `plan` a whole deployment, `show` what people see (docs/planning.md).
"""
