"""Hooks, optimizer constructor, samplers, seeding and strategies for MMEngine's runner."""
