"""Keys in 4 bits per channel over 32 tokens, values in 4 bits per token over 32 channels.

Paper: Liu, Yuan, Jin, Zhong, Xu, Braverman, Chen, Hu, "KIVI: A Tuning-Free Asymmetric 2bit
    Quantization for KV Cache", 2024 (arXiv:2402.02750), algorithm 1.
Differs: keys and values leave the residual together, a page at a time, so the newest 32 to 63 tokens
    of both stay as they came; scale rounds up and minimum down in f16.
"""

from tamis.policy.kv_recipe import KvRecipe, Quantize

RECIPE = KvRecipe(quantize=Quantize(key_bits=4, value_bits=4))
