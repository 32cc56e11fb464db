"""One handle over the compressed formats, NumPy or torch inside."""
