"""Pruning methods: one file per paper, data only."""
