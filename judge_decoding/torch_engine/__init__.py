"""Engines: a drafter and a target behind the contracts of `base`, whatever runs the models."""
