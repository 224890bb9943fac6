"""Packed weights as bytes and back: the same product, memory that lives as long as the weight, and no copy."""

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_mini_cli.engine import mapped_weights
from llava_mini_cli.engine.mapped_weights import (
    can_map,
    is_packed,
    layout_of,
    mapped,
    memory_of,
    pack,
    packed_over,
    unpack,
)
from llava_mini_cli.engine.prepared_index import PAGE

needs_mapping = pytest.mark.skipif(can_map() is not None, reason=str(can_map()))


@pytest.fixture(autouse=True)
def fresh_answer() -> Iterator[None]:
    can_map.cache_clear()
    yield
    can_map.cache_clear()


def weight_of(outputs: int, inputs: int) -> torch.Tensor:
    numbers = torch.Generator().manual_seed(outputs)
    return torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=numbers)


def product(rows: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    operator: Any = torch.ops.onednn.qlinear_pointwise
    scales, zeros = torch.ones(packed.shape[1]), torch.zeros(packed.shape[1], dtype=torch.int64)
    return operator(rows, 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")


def mappings_of(path: Path) -> int:
    return len(re.findall(rf"{re.escape(str(path))}$", Path("/proc/self/maps").read_text(), re.MULTILINE))


def mapped_file(path: Path, content: bytes, offset: int = 0) -> torch.Tensor:
    path.write_bytes(bytes(offset) + content)
    descriptor = os.open(path, os.O_RDONLY)
    memory = mapped(descriptor, offset, len(content))
    os.close(descriptor)
    return memory


@needs_mapping
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 64), (96, 160), (1, 32), (257, 129), (512, 1024)])
def test_a_weight_over_a_mapped_file_gives_the_same_products(tmp_path: Path, outputs: int, inputs: int) -> None:
    weight = weight_of(outputs, inputs)
    packed = pack(weight)
    again = packed_over(mapped_file(tmp_path / "w", bytes(memory_of(packed)), PAGE), packed.shape, layout_of(packed))
    rows = torch.randint(0, 128, (7, inputs), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert is_packed(again)
    assert torch.equal(product(rows, again), product(rows, packed))
    assert torch.equal(product(rows, again), rows.float() @ weight.float().T)  # 7-bit rows: exact on every processor
    assert torch.equal(unpack(again), weight)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not say what is mapped")
@needs_mapping
def test_the_file_stays_mapped_as_long_as_the_weight_lives(tmp_path: Path) -> None:
    packed, path = pack(weight_of(64, 64)), tmp_path / "weights"
    again = packed_over(mapped_file(path, bytes(memory_of(packed))), packed.shape, layout_of(packed))
    gc.collect()
    assert mappings_of(path) == 1
    holder = torch.nn.Module()
    holder.weight, again = again, None
    gc.collect()
    assert mappings_of(path) == 1
    rows = torch.ones(3, 64, dtype=torch.uint8)
    assert torch.equal(product(rows, holder.weight), product(rows, packed))
    del holder
    gc.collect()
    assert mappings_of(path) == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not say what is mapped")
def test_a_view_of_mapped_bytes_keeps_them_mapped(tmp_path: Path) -> None:
    view = mapped_file(tmp_path / "bytes", bytes(range(256)))[16:32].view(torch.int32)
    gc.collect()
    assert mappings_of(tmp_path / "bytes") == 1
    assert view.tolist() == torch.arange(16, 32, dtype=torch.uint8).view(torch.int32).tolist()
    del view
    gc.collect()
    assert mappings_of(tmp_path / "bytes") == 0


def test_what_cannot_be_mapped_is_an_error_of_the_system(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError, match="cannot be mapped"):
        mapped(descriptor, 0, 64)
    os.close(descriptor)


@pytest.mark.parametrize("tensor", [torch.arange(12, dtype=torch.float32), torch.zeros(0), torch.ones(2, 3).bfloat16()])
def test_the_bytes_of_a_dense_tensor_are_its_own(tensor: torch.Tensor) -> None:
    assert bytes(memory_of(tensor)) == bytes(tensor.view(torch.uint8).flatten().tolist())


@needs_mapping
def test_a_layout_for_another_number_of_bytes_is_refused() -> None:
    packed = pack(weight_of(64, 64))
    short = torch.zeros(memory_of(packed).nbytes - 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=rf"{memory_of(packed).nbytes} bytes in {short.numel()} bytes"):
        packed_over(short, packed.shape, layout_of(packed))


def test_a_torch_without_the_interface_cannot_map(monkeypatch: pytest.MonkeyPatch) -> None:
    def library() -> object:
        return object()

    monkeypatch.setattr(mapped_weights, "_library", library)
    assert "has no attribute 'aoti_torch_" in str(can_map())


@needs_mapping
def test_a_weight_that_comes_back_changed_cannot_be_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(memory: torch.Tensor, shape: torch.Size, layout: bytes) -> torch.Tensor:
        return packed_over(memory.roll(1), shape, layout)

    monkeypatch.setattr(mapped_weights, "packed_over", other)
    assert "another weight of the same bytes" in str(can_map())


def test_a_torch_that_packs_in_no_layout_of_its_own_cannot_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_weights, "pack", lambda weight: weight)
    assert "packs weights in another way" in str(can_map())
