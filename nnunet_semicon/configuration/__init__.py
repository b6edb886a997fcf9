"""Hyper-parameters: defaults, rules with reasons, overrides from the plans file."""
