# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from verl.weight_sync.base import SyncReport, WeightStream
from verl.weight_sync.bundle import KeptBundle, WeightManifest, read_bundle, write_bundle
from verl.weight_sync.digest import WeightDigestError
from verl.weight_sync.sent import SentWeights
from verl.weight_sync.shared_memory import SharedMemorySender


def weights() -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        ("a.weight", torch.randn(3, 5, generator=generator)),
        ("b.bias", torch.randn(7, generator=generator).to(torch.bfloat16)),
        ("c.transposed", torch.randn(4, 6, generator=generator).T),
        ("d.empty", torch.zeros(0, 4)),
        ("e.scalar", torch.tensor(3.5, dtype=torch.float64)),
    ]


class RecordingClient:
    """Reads each bundle as an engine would, and keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.received: dict[str, torch.Tensor] = {}

    def init_transfer(self, init_info: dict) -> None:
        self.said.append("init")

    def start_update(self) -> None:
        self.said.append("start")

    def update(self, payload: dict) -> None:
        self.said.append("update")

    def finish_update(self, version: int) -> None:
        self.said.append(f"finish {version}")

    def sync(self, payload: dict, version: int) -> None:
        self.said.append(f"sync {version}")
        self.received = {name: tensor.clone() for name, tensor in read_bundle(WeightManifest(**payload))}


@pytest.mark.parametrize("with_digests", [True, False])
def test_what_is_written_is_read(tmp_path: Path, with_digests: bool) -> None:
    manifest, num_bytes = write_bundle(weights(), tmp_path / "bundle", with_digests)
    read = list(read_bundle(manifest))
    assert [name for name, _ in read] == [name for name, _ in weights()]
    for (_, expected), (_, tensor) in zip(weights(), read, strict=True):
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)
    assert num_bytes == sum(tensor.numel() * tensor.element_size() for _, tensor in weights())
    assert all(offset % 64 == 0 for offset in manifest.offsets)


def test_a_changed_byte_is_refused_by_name(tmp_path: Path) -> None:
    manifest, _ = write_bundle(weights(), tmp_path / "bundle", with_digests=True)
    raw = bytearray((tmp_path / "bundle").read_bytes())
    raw[manifest.offsets[1]] ^= 1
    (tmp_path / "bundle").write_bytes(bytes(raw))
    with pytest.raises(WeightDigestError, match=r"b\.bias"):
        list(read_bundle(manifest))


def test_a_folder_without_room_is_named_and_left_clean(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="weight sync could not write"):
        write_bundle(weights(), tmp_path / "missing" / "bundle", with_digests=False)


def test_a_server_on_another_machine_is_told_so(tmp_path: Path) -> None:
    manifest, _ = write_bundle(weights(), tmp_path / "bundle", with_digests=False)
    (tmp_path / "bundle").unlink()
    with pytest.raises(FileNotFoundError, match="is not on this machine.*weight_sync_backend=nccl, or gloo"):
        list(read_bundle(manifest))


def doubled() -> list[tuple[str, torch.Tensor]]:
    return [(name, 2 * tensor) for name, tensor in weights()]


@pytest.mark.parametrize("with_digests", [True, False])
def test_a_kept_bundle_is_written_again_where_its_reader_has_it_mapped(tmp_path: Path, with_digests: bool) -> None:
    bundle = KeptBundle(tmp_path / "kept")
    first = dict(read_bundle(bundle.write(SentWeights(weights(), with_digests))))
    bundle.hide()
    assert list(tmp_path.iterdir()) == []
    second = dict(read_bundle(bundle.write(SentWeights(doubled(), with_digests))))
    for name, tensor in doubled():
        assert second[name].dtype == tensor.dtype
        assert torch.equal(second[name], tensor)
        assert torch.equal(first[name], tensor)  # the same memory


def test_a_kept_bundle_compares_digests_every_time(tmp_path: Path) -> None:
    bundle = KeptBundle(tmp_path / "kept")
    list(read_bundle(bundle.write(SentWeights(weights(), True))))
    bundle.hide()
    manifest = bundle.write(SentWeights(doubled(), True))
    dict(read_bundle(manifest))["c.transposed"][0, 0] += 1  # what nobody should do
    with pytest.raises(WeightDigestError, match=r"c\.transposed"):
        list(read_bundle(manifest))


@pytest.mark.parametrize(
    "changed",
    [
        [*weights(), ("f.extra", torch.ones(1))],
        weights()[:-1],
        [("renamed", weights()[0][1]), *weights()[1:]],
        [("a.weight", torch.ones(5, 3)), *weights()[1:]],
        [("a.weight", torch.ones(3, 5, dtype=torch.int32)), *weights()[1:]],
    ],
    ids=["more", "fewer", "other name", "other shape", "other dtype"],
)
def test_other_weights_than_the_first_time_are_refused(tmp_path: Path, changed: list) -> None:
    bundle = KeptBundle(tmp_path / "kept")
    bundle.write(SentWeights(weights(), False))
    with pytest.raises(RuntimeError, match="first sync"):
        bundle.write(SentWeights(changed, False))


def test_another_file_of_the_same_name_is_mapped_anew(tmp_path: Path) -> None:
    for seed in (1.0, 2.0):
        path = tmp_path / "same"
        manifest, _ = write_bundle([("a", torch.full((2000,), seed))], path, with_digests=False)
        assert float(dict(read_bundle(manifest))["a"].mean()) == seed
        path.rename(tmp_path / f"moved {seed}")


def test_the_leader_speaks_in_order_and_cleans_up(tmp_path: Path) -> None:
    client = RecordingClient()
    sender = SharedMemorySender(client, is_leader=True, directory=tmp_path)
    report = sender.send(WeightStream(lambda: iter(weights())), version=4, verify=True)
    assert client.said == ["init", "sync 4"]
    assert all(torch.equal(client.received[name], tensor) for name, tensor in weights())
    assert (report.version, report.num_tensors, report.digests_compared) == (4, 5, True)
    assert not sender.send(WeightStream(lambda: iter(doubled())), version=5, verify=False).digests_compared
    assert all(torch.equal(client.received[name], tensor) for name, tensor in doubled())
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_take_part_in_gathering_and_say_nothing(tmp_path: Path) -> None:
    client, seen = RecordingClient(), []

    def gather():
        for name, tensor in weights():
            seen.append(name)
            yield name, tensor

    report = SharedMemorySender(client, is_leader=False, directory=tmp_path).send(WeightStream(gather), 1, True)
    assert len(seen) == 5
    assert client.said == []
    assert report == SyncReport(1, 0, 0, report.gather_s, 0.0)
