"""What every test shares: one thread unless it asks for more, repeatable examples, seeded torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything loads an OpenMP runtime

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "tamis",
    deadline=None,  # the machine is shared
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tamis")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Seed torch where a test imported it, and leave its global switches as they were."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
    yield
    if torch is not None:
        torch.set_grad_enabled(True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-block Llama with random weights and a tokenizer of single bytes, saved dense."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=257,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=256,
        bos_token_id=256,
    )
    folder = tmp_path_factory.mktemp("tiny") / "dense"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A CUDA device that NumPy plays: the class that stands for ``CudaMatrix``."""
    import played_device

    return played_device.play(monkeypatch)


@pytest.fixture
def graphs(played: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Captures on that device."""
    import played_device

    return played_device.Graphs().play(monkeypatch)
