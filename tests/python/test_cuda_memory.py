"""Workspaces of streams and captures, and what a capture refuses, on a device that NumPy plays."""

import contextlib
import threading

import pytest
import torch
from played_device import Graphs, Played, call, half_kept

import tamis
from tamis.ops import cuda_memory


def test_calls_on_a_stream_take_turns_with_one_workspace(played: type[Played]) -> None:
    small = cuda_memory.workspace(0, 7, 10)
    assert small.nbytes == cuda_memory.LEAST
    assert cuda_memory.workspace(0, 7, small.nbytes) is small
    assert cuda_memory.workspace(0, 8, 10).pointer != small.pointer
    large = cuda_memory.workspace(0, 7, small.nbytes + 1)
    assert large.nbytes == 2 * small.nbytes
    assert cuda_memory.workspace(0, 7, small.nbytes) is large


def test_a_capture_has_a_workspace_of_its_own_on_each_stream(graphs: Graphs) -> None:
    eager = cuda_memory.workspace(0, 7, 10)
    taken = [eager.pointer]
    for graphs.now in (1, 2):
        for stream in (7, 8):
            captured = cuda_memory.workspace(0, stream, 10)
            assert cuda_memory.workspace(0, stream, 20) == captured
            assert captured.nbytes == cuda_memory.LEAST
            taken.append(captured.pointer)
    graphs.now = 0
    assert cuda_memory.workspace(0, 7, 10) is eager
    assert len(set(taken)) == 5


def test_a_capture_takes_no_workspace_until_a_call_needs_one(graphs: Graphs) -> None:
    graphs.now = 1
    assert cuda_memory.workspace(0, 7, 0) == (0, 0, None)
    assert not graphs.given


def test_products_of_two_graphs_of_a_stream_share_no_workspace(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointers: list[int] = []
    spmm = Played.spmm

    def noted(self: Played, *arguments: int) -> None:
        pointers.append(arguments[6])
        spmm(self, *arguments)

    monkeypatch.setattr(Played, "spmm", noted)
    a, x = half_kept(32, 64), torch.randn(1, 64, dtype=torch.bfloat16)
    for graphs.now in (0, 1, 1, 2, 0):
        assert call(x, a) is not None
    assert pointers[1] == pointers[2]
    assert pointers[0] == pointers[4]
    assert len(set(pointers)) == 3


def test_a_weight_that_no_call_packed_is_refused_in_a_capture(graphs: Graphs) -> None:
    a, x = half_kept(32, 64), torch.randn(1, 64, dtype=torch.bfloat16)
    graphs.now = 1
    with pytest.raises(tamis.TamisError, match="not used before in the capture of a CUDA gr"):
        call(x, a)
    graphs.now = 0
    want = call(x, a)
    assert want is not None
    graphs.now = 1
    got = call(x, a)
    assert got is not None
    assert torch.equal(got, want)


def test_values_that_may_be_trained_are_expanded_in_a_capture_with_a_word(graphs: Graphs) -> None:
    a, x = half_kept(32, 64), torch.randn(1, 64, dtype=torch.bfloat16)
    a.arrays["values"].requires_grad_()
    assert call(x, a) is None  # may be written at once
    graphs.now = 1
    with pytest.warns(UserWarning, match="not packed yet in the capture of a CUDA graph"):
        assert call(x, a) is None
    graphs.now = 0
    assert call(x, a) is not None


def test_memory_that_lasts_is_made_by_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[object] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: ("stream of", device))
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda s: contextlib.nullcontext(streams.append(s)))
    on = torch.device("cuda", 1)
    assert cuda_memory.lasting(on, threading.get_ident) != threading.get_ident()
    assert streams == [("stream of", on)]
    with pytest.raises(ZeroDivisionError):
        cuda_memory.lasting(on, lambda: 1 / 0)
