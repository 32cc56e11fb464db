"""Parts of bench/peers.py: cases, candidates, worker processes, tables."""
