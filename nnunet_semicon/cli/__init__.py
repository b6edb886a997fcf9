"""The ``semicon`` command."""
