"""Three fifths of the tokens in 4 bits, the others in 2, by attention per query that could see them.

Paper: He, Zhang, Wu, Liu, Zhou, Zhuang, "ZipCache: Accurate and Efficient KV Cache Quantization with
    Salient Token Identification", 2024 (arXiv:2405.14256), section 4.
Differs: keys share scales over 64 tokens of a class instead of all of it, and values over one head's
    channels instead of channel-normalized rows: kv_page's layout, which decoding reads as stored.
"""

from tamis.policy.kv_recipe import Classes, KvRecipe, Probes

RECIPE = KvRecipe(classes=Classes(Probes(recent=0.05, random=0.05), top_p=0.0, share=0.6))
