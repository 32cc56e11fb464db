"""Labels of new tokens: written where they are read, and counted once they are."""

import pytest
import torch

from tamis.kv.kv_store import KvStore
from tamis.kv.methods import recipe_of
from tamis.ops import chosen, cuda_kv
from tamis.ops import kv_select as op


def grown(steps: int) -> tuple[KvStore, torch.Tensor]:
    torch.manual_seed(steps)
    k, v = torch.randn(2, 1, 2, 200 + steps, 64)
    q = torch.randn(1, 4, 1, 64)
    store = KvStore(recipe_of("double_sparsity"), budget=40, layer=2)
    store.append(k[:, :, :200], v[:, :, :200])
    store.attend(q)
    for t in range(200, 200 + steps):
        store.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
    return store, q


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("takes", [True, False])
def test_one_new_label_is_left_to_the_launch_that_reads_it(steps, takes, monkeypatch) -> None:
    store, q = grown(steps)
    held, keys = store.selection, store.rows["keys"].view
    asked, appended, append = [], [], op.append_labels
    monkeypatch.setattr(cuda_kv, "chosen_attention", lambda *a: asked.append(a[-1]) or takes)
    monkeypatch.setattr(op, "append_labels", lambda *a: appended.append(a[3]) or append(*a))
    labels = held._labels(keys, q.device)
    choice = chosen.Choice(labels, 40, new=held._new, keys=keys)
    rows = q.view(1, 2, 2, 64)
    out, lse = torch.empty_like(rows), torch.empty(1, 4, 1)
    assert chosen.attend((0, (1, 2, 2, 64)), rows, out, lse, (0.125, 0.0), None, choice) == takes
    assert asked == [steps == 1]
    assert appended == ([] if steps == 1 else [200])
    assert held.labelled == (200 if steps == 1 and not takes else 200 + steps)
    if not takes:
        choice.lists(q)
        assert held.labelled == 200 + steps
    assert appended == ([] if steps == 1 and takes else [200])
    assert held.clone().labelled == held.labelled
    held.crop(190)
    assert held.labelled == 190
