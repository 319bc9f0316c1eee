"""Generated questions whose answer is known, and labelled answers to them.

The idea is TokenCourt's (Bachmann et al., "Judge Decoding"): a question, a right answer, a wrong
answer, and the place of the error.

questions  `facts.questions` makes them from facts in small packages; nothing is downloaded
labels     `records.fact_records` writes right and wrong answers and marks the wrong tokens
split      `split.split_in`: all questions about one fact are trained on or held out together, and
           one whole domain is held out
tasks      `items.item_of` for mining; `export` writes the shipped tasks `court` and `arithmetic`
"""
