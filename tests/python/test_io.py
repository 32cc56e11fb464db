"""save, load, export and what they refuse."""

import errno
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers")

from checkpoints import Net, logits, same_state, snapshot, sparse, sparse_net, tiny
from torch import nn

import tamis
from tamis import atomic, writing
from tamis.nn import SparseLinear
from tamis.report import Report

UP = "model.layers.0.mlp.up_proj"


def test_no_module_hides_a_public_function():
    """Importing tamis.x sets the attribute x of the package; a function of that name would go."""
    modules = {info.name for info in pkgutil.iter_modules(tamis.__path__)}
    assert not modules & {name for name in tamis.__all__ if callable(getattr(tamis, name))}


# Modules that are no transformers model


def test_any_module_round_trips(tmp_path):
    net = sparse_net()
    tamis.save(net, tmp_path / "a")
    skeleton = Net(seed=1)
    loaded = tamis.load(tmp_path / "a", model=skeleton)
    assert loaded is skeleton
    assert same_state(net, loaded)
    assert loaded.head.weight is loaded.embed.weight
    assert torch.equal(logits(net), logits(loaded))
    assert not loaded.training
    assert loaded.up.weight_values.requires_grad


def test_a_skeleton_on_the_meta_device(tmp_path):
    net = sparse_net(torch.bfloat16)
    tamis.save(net, tmp_path / "a")
    with torch.device("meta"):
        skeleton = Net(seed=1)
    assert same_state(net, tamis.load(tmp_path / "a", model=skeleton))
    assert torch.equal(logits(net), logits(skeleton))


def test_frozen_parameters_stay_frozen(tmp_path):
    tamis.save(sparse_net(), tmp_path / "a")
    skeleton = Net().requires_grad_(False)
    loaded = tamis.load(tmp_path / "a", model=skeleton)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_module_dtype_override(tmp_path):
    net = sparse_net()
    tamis.save(net, tmp_path / "a")
    loaded = tamis.load(tmp_path / "a", model=Net(), dtype="bf16")
    assert loaded.up.layout.dtype == "bf16"
    assert same_state(loaded, net.to(torch.bfloat16))


def test_module_shards(tmp_path):
    net = sparse_net()
    tamis.save(net, tmp_path / "a", max_shard_size=10_000)
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2
    assert same_state(net, tamis.load(tmp_path / "a", model=Net()))


def test_a_transformers_folder_can_fill_a_module(tmp_path):
    model = sparse()
    tamis.save(model, tmp_path / "a")
    loaded = tamis.load(tmp_path / "a", model=tiny(seed=5))
    assert same_state(model, loaded)
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight or (
        model.lm_head.weight is model.model.embed_tokens.weight
    )


class Wider(Net):
    def __init__(self):
        super().__init__(1)
        self.up = nn.Linear(64, 192)


class Extra(Net):
    def __init__(self):
        super().__init__(1)
        self.more = nn.Linear(4, 4)


class Fewer(Net):
    def __init__(self):
        super().__init__(1)
        self.shift = None


class Renamed(Net):
    def __init__(self):
        super().__init__(1)
        self.up = nn.Identity()


@pytest.mark.parametrize(
    ("skeleton", "message"),
    [
        (Wider, r"got \[192, 64\] at up, wanted a linear layer \[128, 64\]"),
        (Extra, r"more.weight: got no such tensor"),
        (Fewer, r"at shift, wanted a place"),
        (Renamed, r"got Identity at up"),
    ],
)
def test_another_module_is_refused_and_stays_as_it_was(skeleton, message, tmp_path):
    tamis.save(sparse_net(), tmp_path / "a")
    model = skeleton()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(tamis.TamisError, match=message):
        tamis.load(tmp_path / "a", model=model)
    assert kinds == [type(m) for m in model.modules()]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training


def test_export_of_a_module_is_a_plain_state_dict(tmp_path):
    net = sparse_net()
    tamis.export(net, tmp_path / "a")
    state = load_file(tmp_path / "a" / "model.safetensors")
    dense = Net()
    dense.load_state_dict({**state, "head.weight": state["embed.weight"]})
    assert torch.allclose(logits(dense), logits(net), atol=1e-5)


# Arguments


def test_bad_arguments(tmp_path):
    net = sparse_net()
    tamis.save(net, tmp_path / "a")
    with torch.device("meta"):
        empty = Net()
    cases = [
        (lambda: tamis.save("x", tmp_path / "b"), TypeError, "save: model: got str"),
        (lambda: tamis.save(empty, tmp_path / "b"), ValueError, "on the meta device"),
        (lambda: tamis.save(net, tmp_path / "b", max_shard_size="ten"), ValueError, "'ten'"),
        (lambda: tamis.save(net, tmp_path / "b", max_shard_size=0), ValueError, "got 0"),
        (lambda: tamis.save(net, tmp_path / "b", tokenizer=3), TypeError, "tokenizer: got int"),
        (lambda: tamis.export(net, tmp_path / "b", "gguf"), NotImplementedError, "'gguf'"),
        (lambda: tamis.load(tmp_path / "a"), ValueError, "pass model="),
        (lambda: tamis.load(tmp_path / "a", model=3), TypeError, "load: model: got int"),
        (lambda: tamis.load(tmp_path / "a", model=Net(), dtype="i8"), TypeError, "dtype: got 'i8'"),
        (lambda: tamis.load(tmp_path / "c"), OSError, "nothing there, wanted a checkpoint folder"),
        (lambda: tamis.load(tmp_path), OSError, "no model.safetensors"),
        (lambda: tamis.load(tmp_path / "a" / "README.md"), OSError, "got a file"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            call()
        assert isinstance(caught.value, tamis.TamisError)
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_report_and_tokenizer_are_saved(tmp_path):
    class Tokenizer:
        def save_pretrained(self, folder):
            (Path(folder) / "tokenizer.json").write_text("{}")

    model = sparse()
    report = Report("x", [])
    tamis.save(model, tmp_path / "a", tokenizer=Tokenizer(), report=report)
    assert json.loads((tmp_path / "a" / "report.json").read_text())["title"] == "x"
    # Found again next to the weights that the model came from, and in the folder it replaces.
    loaded = tamis.load(tmp_path / "a")
    tamis.save(loaded, tmp_path / "b")
    assert (tmp_path / "b" / "tokenizer.json").read_text() == "{}"
    tamis.save(model, tmp_path / "b", overwrite=True)
    assert (tmp_path / "b" / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("kind", ["sparse", "dense", "module"])
def test_the_readme_tells_how_to_load(kind, tmp_path):
    model = sparse_net() if kind == "module" else sparse()
    (tamis.export if kind == "dense" else tamis.save)(model, tmp_path / "a")
    text = (tmp_path / "a" / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    names = {"skeleton": Net(1)}
    exec(code.replace("path/to/this/folder", str(tmp_path / "a")), names)
    assert torch.allclose(logits(names["model"]), logits(model), atol=1e-5)


# Writing: all or nothing


def test_an_existing_folder_is_kept_unless_told(tmp_path):
    tamis.save(sparse_net(), tmp_path / "a")
    before = snapshot(tmp_path / "a")
    with pytest.raises(tamis.TamisFileError, match="pass overwrite=True"):
        tamis.save(sparse(), tmp_path / "a")
    assert snapshot(tmp_path / "a") == before
    (tmp_path / "a" / "old.txt").write_text("gone after the swap")
    model = sparse()
    tamis.save(model, tmp_path / "a", overwrite=True)
    assert same_state(model, tamis.load(tmp_path / "a"))
    assert not (tmp_path / "a" / "old.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_overwrite_spares_folders_that_hold_no_model(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    with pytest.raises(tamis.TamisFileError, match="holds no model"):
        tamis.save(sparse_net(), tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years"


def test_new_parents_empty_folders_and_links(tmp_path):
    net = sparse_net()
    tamis.save(net, tmp_path / "x" / "y" / "a")
    (tmp_path / "empty").mkdir()
    tamis.save(net, tmp_path / "empty")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    tamis.save(net, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert same_state(net, tamis.load(tmp_path / "link", model=Net(1)))
    assert not list(tmp_path.rglob("*.tamis"))


def test_files_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(tamis.TamisFileError, match="got the file .*, wanted a folder"):
        tamis.save(sparse_net(), tmp_path / "file")
    with pytest.raises(tamis.TamisFileError, match="what was on disk is unchanged"):
        tamis.save(sparse_net(), tmp_path / "file" / "a" / "b")
    assert (tmp_path / "file").read_text() == "x"


def test_permissions_follow_the_umask(tmp_path):
    tamis.save(sparse_net(), tmp_path / "a")
    mode = (tmp_path / "a").stat().st_mode & 0o666
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "a").iterdir()} == {mode}


@pytest.mark.parametrize(
    "stop", [KeyboardInterrupt, MemoryError, OSError(errno.ENOSPC, "No space")]
)
@pytest.mark.parametrize("where", ["write_shard", "write_manifest", "write_readme"])
def test_a_failure_at_any_step_changes_nothing(stop, where, tmp_path, monkeypatch):
    tamis.save(sparse_net(), tmp_path / "a")
    before = snapshot(tmp_path)
    net = sparse_net()
    state = {k: v.clone() for k, v in net.state_dict().items()}

    def fail(*args, **kwargs):
        raise stop

    monkeypatch.setattr(writing, where, fail)
    wanted = tamis.TamisFileError if isinstance(stop, OSError) else stop
    for folder in (tmp_path / "a", tmp_path / "deep" / "b"):
        with pytest.raises(wanted):
            tamis.save(net, folder, overwrite=True)
    assert snapshot(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())


def test_a_model_that_somebody_else_saves_meanwhile_is_kept(tmp_path, monkeypatch):
    write = writing.write_manifest

    def slow(*args, **kwargs):
        monkeypatch.setattr(writing, "write_manifest", write)
        tamis.save(sparse_net(torch.bfloat16), tmp_path / "a")
        return write(*args, **kwargs)

    monkeypatch.setattr(writing, "write_manifest", slow)
    with pytest.raises(tamis.TamisFileError, match="Directory not empty.*new or empty.*overwrite"):
        tamis.save(sparse_net(), tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    kept = tamis.load(tmp_path / "a", model=Net())
    assert {p.dtype for p in kept.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("exchange", [True, False])
def test_a_failed_swap_restores_the_old_folder(exchange, tmp_path, monkeypatch):
    tamis.save(sparse_net(), tmp_path / "a")
    before = snapshot(tmp_path / "a")
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
        net = sparse_net(torch.bfloat16)
        tamis.save(net, tmp_path / "b")
        tamis.save(net, tmp_path / "b", overwrite=True)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
        rename = Path.rename

        def fail_second(self, target):
            if self.suffix == ".tamis":
                raise OSError(errno.EIO, "Input/output error")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fail_second)
    else:
        monkeypatch.setattr(
            atomic, "_flush", lambda folder: (_ for _ in ()).throw(OSError(5, "EIO"))
        )
    with pytest.raises(tamis.TamisFileError, match="what was on disk is unchanged"):
        tamis.save(sparse_net(), tmp_path / "a", overwrite=True)
    assert snapshot(tmp_path / "a") == before
    assert not list(tmp_path.glob(".a*"))


SAVE_UNDER_A_LIMIT = """
import os, resource, sys
sys.path[:0] = {paths!r}
import torch, tamis
from checkpoints import sparse, sparse_net
model = {model}
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    tamis.save(model, {folder!r}, overwrite=True)
except tamis.TamisFileError as err:
    print(err)
"""


@pytest.mark.parametrize(
    ("model", "limit"), [("sparse()", 30_000), ("sparse_net()", 1), ("sparse_net()", 2_000)]
)
def test_a_full_disk(model, limit, tmp_path):
    """A limit on the size of files: writes fail as on a full disk, even for root."""
    tamis.save(sparse_net(torch.bfloat16), tmp_path / "a")
    before = snapshot(tmp_path)
    paths = [str(Path(__file__).parent), str(Path(tamis.__file__).parents[1])]
    code = SAVE_UNDER_A_LIMIT.format(
        paths=paths, model=model, limit=limit, folder=str(tmp_path / "a")
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], capture_output=True, text=True, check=True
    )
    assert "save: dir: got" in done.stdout, done.stdout + done.stderr
    assert "File too large" in done.stdout
    assert done.stdout.strip().endswith("what was on disk is unchanged.")
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(tamis.TamisFileError, match="wanted a writable folder"):
            tamis.save(sparse_net(), tmp_path / "a")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
def test_a_folder_where_nobody_may_write(tmp_path):
    with pytest.raises(tamis.TamisFileError, match="what was on disk is unchanged"):
        tamis.save(sparse_net(), "/proc/self/a")


def test_plain_save_pretrained_over_a_saved_folder(tmp_path):
    """tamis.json is stale then, and must not be believed."""
    tamis.save(sparse(), tmp_path / "a")
    loaded = tamis.load(tmp_path / "a")
    with torch.no_grad():
        loaded.get_submodule(UP).weight_values.mul_(2)
    state = {k: v.clone() for k, v in loaded.state_dict().items()}
    loaded.load_state_dict(state, assign=True)
    loaded.save_pretrained(tmp_path / "a")
    assert same_state(tamis.load(tmp_path / "a"), loaded)


def test_a_stock_dense_folder_loads_too(tmp_path):
    model = sparse()
    tamis.export(model, tmp_path / "a")
    loaded = tamis.load(tmp_path / "a")
    assert not any(isinstance(m, SparseLinear) for m in loaded.modules())
    assert same_state(loaded, tamis.dense_(model))
