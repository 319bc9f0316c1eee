"""Other load generators against the same server: shell scripts, and what they need prepared."""
