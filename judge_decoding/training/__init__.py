"""Training the judge and the draft: label data, heads, thresholds and the studies about them."""
