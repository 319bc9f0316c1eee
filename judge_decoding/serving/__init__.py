"""The loop as a service: requests from plain values, the scheduler, replies, the launcher."""
