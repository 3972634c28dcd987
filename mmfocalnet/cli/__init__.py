"""Shared code of the tools: flags, checks, runner and error messages."""
