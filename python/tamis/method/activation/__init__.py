"""Activation sparsity: which activations of a token are left out."""
