"""KIVI's 4 bits with fewer scales: a key's over 64 tokens, a value's over all channels of its head.

Paper: Liu, Yuan, Jin, Zhong, Xu, Braverman, Chen, Hu, "KIVI: A Tuning-Free Asymmetric 2bit
    Quantization for KV Cache", 2024 (arXiv:2402.02750), algorithm 1 with wider groups.
Differs: as kivi4, with the newest 32 to 95 tokens as they came; 4.375 bits an element where heads
    have 128 channels (kivi4: 5), of which a step reads every one.
"""

from tamis.policy.kv_recipe import KvRecipe, Quantize

RECIPE = KvRecipe(quantize=Quantize(key_bits=4, value_bits=4, page=64, group=0))
