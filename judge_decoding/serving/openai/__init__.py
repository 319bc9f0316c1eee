"""The OpenAI-compatible endpoint: one process that holds no model and no state (docs/serving.md).

settings  what the process must know of the deployment
process   the process, as the launcher sees it
schema    requests: their fields, and what is refused
errors    OpenAI's error shape
engine    a request as tensors of `ensemble`, and its responses
answers   the JSON of answers
app       routes, access and bounds
"""
