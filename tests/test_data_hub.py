"""Data sets of the Hub, against a server on this machine that speaks the few endpoints that are needed."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fake_hub import Hub, serving
from pixelkiln.cli.main import main
from pixelkiln.core.types import UserError
from pixelkiln.data import hub, open_source

pytest.importorskip("huggingface_hub")
COMMIT, OLDER = "0123456789abcdef" * 2 + "01234567", "f" * 40


def parquet(values: range) -> bytes:
    rows = []
    for value in values:
        buffer = io.BytesIO()
        Image.new("L", (4, 4), value).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": f"{value}.png"})
    features = {"image": {"_type": "Image"}, "label": {"names": ["even", "odd"], "_type": "ClassLabel"}}
    table = pa.table({"image": rows, "label": [value % 2 for value in values]})
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), out)
    return out.getvalue()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {"data/train-00000-of-00002.parquet": parquet(range(12)), "data/train-00001-of-00002.parquet": parquet(range(12, 20)),
                    "data/test-00000-of-00001.parquet": parquet(range(20, 23)), "README.md": b"# a set"}
    monkeypatch.setattr(hub, "WAITS", (0.01, 0.01))
    revisions = {"main": COMMIT, COMMIT: COMMIT, "v1": OLDER, OLDER: OLDER}
    with serving(Hub("datasets", "me/set", files, revisions), {"HF_HUB_CACHE": str(tmp_path / "hub"), "PIXELKILN_CACHE": str(tmp_path / "cache")}) as found:
        yield found


def test_a_data_set_is_listed_downloaded_and_read_at_its_commit(server: Hub) -> None:
    train, test = open_source("hf:me/set"), open_source("hf:me/set", split="test")
    assert train.images[:, 0, 0, 0].tolist() == list(range(20))
    assert test.images[:, 0, 0, 0].tolist() == [20, 21, 22]
    assert train.labels.tolist() == [i % 2 for i in range(20)]
    assert (train.classes, train.name) == (("even", "odd"), "set")
    assert train.source == test.source == f"hf:me/set@{COMMIT}"
    assert open_source("hf:me/set@v1").source == f"hf:me/set@{OLDER}"
    assert not any("README" in line for line in server.asked)


def test_a_commit_that_is_in_the_cache_needs_no_network(server: Hub) -> None:
    first = open_source("hf:me/set:data")
    server.close()
    assert first.source == f"hf:me/set@{COMMIT}:data"
    assert open_source(first.source).digest() == first.digest()
    with pytest.raises(UserError, match=r"^hf:me/set: the Hub cannot be reached \(.*\): check the network"):
        open_source("hf:me/set")


def test_a_short_failure_is_waited_out(server: Hub) -> None:
    server.failures = 1
    assert len(open_source("hf:me/set")) == 20
    server.failures = 100
    with pytest.raises(UserError, match=r"the Hub cannot be reached \(.*503"):
        open_source("hf:me/set@v1")


@pytest.mark.parametrize("name", ["data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"])
def test_a_checksum_that_differs_is_refused(server: Hub, name: str) -> None:
    server.lies[name] = parquet(range(5, 17) if "train" in name else range(5, 8))
    assert (len(server.files[name]) > 1000) == ("sha256" in str(server.sibling(name)))
    server.lies[name] = server.lies[name][:-4].ljust(len(server.files[name]) - 4, b"\0") + b"PAR1"
    with pytest.raises(UserError, match=rf"{name} is not what the Hub lists \(checksum mismatch\)"):
        open_source("hf:me/set")


def test_small_files_are_held_against_gits_own_name(server: Hub, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello\n")
    assert hub.checksum(tmp_path / "x", "git", 6, 0) == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object of "hello\n"


def test_configurations(server: Hub) -> None:
    server.files = {"red/train/0000.parquet": parquet(range(3)), "red/test/0000.parquet": parquet(range(3, 5)), "blue/train/0000.parquet": parquet(range(7))}
    assert open_source("hf:me/set:red", split="test").images[:, 0, 0, 0].tolist() == [3, 4]
    assert len(open_source("hf:me/set@main:blue")) == 7
    with pytest.raises(UserError, match=r"has several configurations: say hf:me/set:CONFIG with one of blue, red"):
        open_source("hf:me/set")
    with pytest.raises(UserError, match=r"has no configuration 'green'"):
        open_source("hf:me/set:green")


@pytest.mark.parametrize(
    ("src", "message"),
    [
        ("hf:me/other", "no such data set, or it is private"),
        ("hf:me/set@nowhere", "no such revision"),
        ("hf:me", "is not hf:owner/name"),
        ("hf:../..", "is no name of a data set|no such data set"),
    ],
)
def test_what_is_not_there_is_one_line(server: Hub, src: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_source(src)
    assert "\n" not in str(caught.value)


def test_a_hostile_listing_is_refused(server: Hub) -> None:
    server.files = {"../../evil.parquet": parquet(range(3))}
    with pytest.raises(UserError, match="leads out of the data set"):
        open_source("hf:me/set")
    server.files = {"README.md": b"x"}
    with pytest.raises(UserError, match="has no Parquet files at this revision"):
        open_source("hf:me/set")


def test_without_the_extra_it_is_one_line_and_status_2(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["train", "pca", "--data", "hf:me/set", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.strip().endswith("pip install 'pixelkiln[hub]'")


def test_a_run_records_the_commit(server: Hub, tmp_path: Path) -> None:
    assert main(["train", "pca", "--data", "hf:me/set", "--out", str(tmp_path / "run"), "--size", "tiny", "--quiet"]) == 0
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["data"]["source"] == f"hf:me/set@{COMMIT}"
