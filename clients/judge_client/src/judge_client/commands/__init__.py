"""The client's commands: `judge-client generate | chat | probe`. They need the extra `cli`."""
