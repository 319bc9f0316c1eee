"""Plans a deployment before it is bought: memory per GPU and expected speed (docs/planning.md).

shapes      sizes of the models
gpus        data sheets of the GPUs, and how much of them decoding reaches
roofline    time of one pass
plan        a whole deployment
plan_table  a plan as a table and as a JSON document
"""
