"""Reading damaged folders: every fault is one sentence, or changes nothing."""

import json
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from checkpoints import Net, logits, same_state, snapshot, sparse, sparse_net

import tamis
from tamis.nn import SparseLinear


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two saved folders, their bytes, and the models in them."""
    root = tmp_path_factory.mktemp("saved")
    net, model = sparse_net(), sparse(num_hidden_layers=1, vocab_size=32)
    tamis.save(net, root / "net")
    tamis.save(model, root / "llama", max_shard_size="30KB")
    return {
        "net": (root / "net", snapshot(root / "net"), net, lambda: Net(1)),
        "llama": (root / "llama", snapshot(root / "llama"), model, lambda: None),
    }


def attempt(call):
    """What the call returns, or None if it fails with one of our sentences."""
    try:
        return call()
    except tamis.TamisError as err:
        sentence = str(err)
    assert sentence
    assert "\n" not in sentence
    return None


def restore(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)


def read_files(files):
    """The files whose bytes load reads."""
    return sorted(str(n) for n in files if str(n) not in ("README.md", "report.json"))


@settings(max_examples=150)
@given(data=st.data(), which=st.sampled_from(["net", "llama"]))
def test_flips_and_cuts_are_errors_or_change_nothing(saved, data, which):
    folder, files, wanted, skeleton = saved[which]
    name = data.draw(st.sampled_from(read_files(files)))
    content = bytearray(files[Path(name)])
    # Half of the damage goes to the first kilobytes, where the headers are.
    end = len(content) - 1
    at = data.draw(st.integers(0, min(end, 4000)) | st.integers(0, end))
    if data.draw(st.booleans()):
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        content = content[:at]
    (folder / name).write_bytes(bytes(content))
    try:
        loaded = attempt(lambda: tamis.load(folder, model=skeleton()))
        if loaded is not None:
            assert same_state(loaded, wanted)
            assert torch.equal(logits(loaded), logits(wanted))
    finally:
        restore(folder, files)


@settings(max_examples=100)
@given(data=st.data())
def test_unverified_flips_never_crash(saved, data):
    """Without checksums values may change, but no kernel may see a broken structure."""
    folder, files, _, skeleton = saved["net"]
    content = bytearray(files[Path("model.safetensors")])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "model.safetensors").write_bytes(bytes(content))
    try:
        attempt(lambda: logits(tamis.load(folder, model=skeleton(), verify=False)))
    finally:
        restore(folder, files)


def header_of(path):
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write_header(path, header, data, size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((size or len(text)).to_bytes(8, "little") + text + data)


def edited(key, **fields):
    def change(header):
        header[key] = {**header[key], **fields}
        return header

    return change


HEADER_FAULTS = {
    "oversized": (None, "wanted a header of at most 100000000 bytes instead of"),
    "empty": (lambda h: b"", "broken header"),
    "not json": (lambda h: b"{" * 50, "broken header"),
    "deep": (lambda h: b'{"a":' + b"[" * 200_000, "broken header"),
    "list": (lambda h: b"[]", "broken header .not a JSON object"),
    "twice": (lambda h: b'{"a":1,"a":2}', "a key occurs twice"),
    "dtype": (edited("shift", dtype="F7"), "unknown dtype 'F7'"),
    "size": (edited("shift", shape=[65]), "does not fill"),
    "negative": (edited("shift", shape=[-64]), "out of range"),
    "huge": (edited("shift", shape=[2**62, 2**62]), "out of range"),
    "float": (edited("shift", shape=[64.0]), "out of range"),
    "no offsets": (lambda h: {**h, "shift": {"dtype": "F32", "shape": [64]}}, "broken header"),
    "overlap": (lambda h: {**h, "copy": h["shift"]}, "got data at byte"),
    "metadata": (lambda h: {**h, "__metadata__": {"a": 1}}, "__metadata__ is not text"),
}


@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_damaged_headers(fault, tmp_path):
    tamis.save(sparse_net(), tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    header, data = header_of(path)
    change, message = HEADER_FAULTS[fault]
    if change is None:
        write_header(path, header, data, size=2**40)
    else:
        write_header(path, change(header), data)
    with pytest.raises(tamis.TamisFileError, match=message) as caught:
        tamis.load(tmp_path / "a", model=Net())
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def drop_shard(folder):
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def edit_index(change):
    def edit(folder):
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return edit


SHARD_FAULTS = {
    "missing shard": (drop_shard, "model-00002-of-.*: got no such file"),
    "outside": (edit_index(lambda m: m.update({"up.bias": "../x.safetensors"})), "plain file name"),
    "absolute": (edit_index(lambda m: m.update({"up.bias": "/etc/passwd"})), "plain file name"),
    "number": (edit_index(lambda m: m.update({"up.bias": 3})), "plain file name"),
    "wrong shard": (
        edit_index(lambda m: m.update({"up.bias": m["embed.weight"]})),
        "up.bias: got no such tensor in model-",
    ),
    "empty": (edit_index(lambda m: m.clear()), "no 'weight_map'"),
}


@pytest.mark.parametrize("fault", SHARD_FAULTS)
def test_damaged_shards(fault, tmp_path):
    tamis.save(sparse_net(), tmp_path / "a", max_shard_size=10_000)
    change, message = SHARD_FAULTS[fault]
    change(tmp_path / "a")
    with pytest.raises(tamis.TamisFileError, match=message):
        tamis.load(tmp_path / "a", model=Net(), verify=False)


def test_a_tensor_in_two_shards(tmp_path):
    tamis.save(sparse_net(), tmp_path / "a", max_shard_size=10_000)
    first, second = sorted((tmp_path / "a").glob("model-*.safetensors"))[:2]
    save_file({**load_file(second), **load_file(first)}, second)
    with pytest.raises(tamis.TamisFileError, match="each tensor in one file"):
        tamis.load(tmp_path / "a", model=Net())


def test_versions_from_the_future(tmp_path):
    tamis.save(sparse_net(), tmp_path / "a")
    path = tmp_path / "a" / "tamis.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "format_version": 2, "tamis_version": "9.1"}))
    with pytest.raises(tamis.TamisFileError, match=r"got 2, wanted 1.*pip install -U 'tamis>=9.1'"):
        tamis.load(tmp_path / "a", model=Net())


def test_checksums_are_crc32_of_name_dtype_shape_and_bytes(tmp_path):
    tamis.save(sparse_net(), tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / "tamis.json").read_text())
    with safe_open(tmp_path / "a" / "model.safetensors", "np") as file:
        assert sorted(manifest["tensors"]) == sorted(file.keys())
        value = file.get_tensor("up.weight_mask")
    seed = zlib.crc32(b"up.weight_mask|I64|[128, 1]")
    assert manifest["tensors"]["up.weight_mask"] == f"{zlib.crc32(value.tobytes(), seed):08x}"


def test_a_flipped_value_is_found_by_its_checksum(tmp_path):
    net = sparse_net()
    tamis.save(net, tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    at = raw.find(net.up.weight_values.detach().numpy().tobytes())
    raw[at + 8] ^= 1
    path.write_bytes(raw)
    with pytest.raises(
        tamis.TamisFileError, match=r"model.safetensors: up.weight_values: got checksum"
    ):
        tamis.load(tmp_path / "a", model=Net())
    loaded = tamis.load(tmp_path / "a", model=Net(), verify=False)
    assert not torch.equal(loaded.up.weight_values, net.up.weight_values)


def test_an_edited_config_is_named(tmp_path):
    tamis.save(sparse(), tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    path.write_text(path.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 20000.0'))
    with pytest.raises(tamis.TamisFileError, match=r"config.json: got checksum .*verify=False"):
        tamis.load(tmp_path / "a")
    tamis.load(tmp_path / "a", verify=False)


def test_unaligned_tensors_load(tmp_path):
    """Other writers may place data at any byte."""
    net = sparse_net()
    tamis.save(net, tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    header, data = header_of(path)
    text = json.dumps(header).encode()
    write_header(path, text + b" " * (3 - len(text) % 8), data)
    loaded = tamis.load(tmp_path / "a", model=Net())
    assert same_state(net, loaded)
    assert torch.equal(logits(net), logits(loaded))
    assert isinstance(loaded.up, SparseLinear)
