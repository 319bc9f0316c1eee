"""What a rule costs in quality: tasks, parsers, the paired comparison, the audit of a server."""
