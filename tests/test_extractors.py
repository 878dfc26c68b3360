"""Extractors: the standard network and its exact resizing, names that need the pinned weights, downloads, DINOv2 and CLIP, files and functions."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pixelkiln.core.download import download
from pixelkiln.core.types import UserError
from pixelkiln.data import ImageSet, open_source
from pixelkiln.engine import inception as engine_inception
from pixelkiln.engine.evaluate import evaluate, score
from pixelkiln.engine.extractor import Named
from pixelkiln.engine.inception import PINNED, clean_resize, inception, tf_resize
from pixelkiln.engine.named import extractor_named
from pixelkiln.engine.scores import Sets, title
from pixelkiln.engine.statistics import Statistics, score_shard, statistics_of
from pixelkiln.metrics import inception_score
from pixelkiln.nets.inception import Inception

TRAIN, TEST = open_source("digits", split="train"), open_source("digits", split="test")
GEN = torch.Generator().manual_seed(0)
COLORED = torch.randint(0, 256, (6, 3, 40, 31), generator=GEN, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Toy(nn.Module):
    """A custom extractor: 16 features of uint8 images, of (N, 3, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x[:, 0].flatten(1).float() / 64)


def toy(name: str = "toy") -> Named:
    torch.manual_seed(0)
    net = Toy().requires_grad_(False)
    return Named(name, "0", f"-{name}", 16, "as it is", net, num_classes=16, classify=lambda f: 4 * f)


# ---- the standard network


@pytest.fixture(scope="module")
def random_inception() -> Inception:
    torch.manual_seed(0)
    net = Inception().eval().requires_grad_(False)
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
            part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    return net


def test_inception_has_the_published_shapes(random_inception: Inception) -> None:
    """Parameters: 23,851,784 of Inception-v3 without its side branch and with 1,000 outputs have 8 rows less in the last layer."""
    published = 27_161_264 - 3_326_696  # torchvision's documented count with the side branch, minus that of the branch
    outputs = 1000 * 2049
    assert sum(p.numel() for p in random_inception.parameters()) == published - outputs + 1008 * 2049
    names = set(random_inception.state_dict())
    assert {"Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch_pool.bn.running_var", "Mixed_6e.branch7x7dbl_5.conv.weight", "fc.bias"} <= names
    assert random_inception.Mixed_7b.branch3x3_2a.conv.weight.shape == (384, 384, 1, 3)  # type: ignore[union-attr]
    maps = random_inception.stages(torch.zeros(1, 3, 299, 299))
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 73, 73), (192, 35, 35), (768, 17, 17), (2048, 8, 8)]


def test_pools_do_not_count_padding_and_the_last_block_takes_the_maximum(random_inception: Inception) -> None:
    """The two quirks of the published graph, against direct arithmetic at a corner."""
    x = torch.rand(1, 1280, 8, 8)
    block = random_inception.Mixed_7b
    mean = x[:, :, :2, :2].mean((2, 3))[:, :, None, None]  # a corner sees four pixels, not nine
    torch.testing.assert_close(block(x)[:, -192:, 0, 0], block.branch_pool(mean)[..., 0, 0], rtol=1e-4, atol=1e-4)
    x = torch.rand(1, 2048, 8, 8)
    block = random_inception.Mixed_7c
    most = x[:, :, :2, :2].amax((2, 3))[:, :, None, None]
    torch.testing.assert_close(block(x)[:, -192:, 0, 0], block.branch_pool(most)[..., 0, 0], rtol=1e-4, atol=1e-4)


def test_clean_resize_is_pillows_on_float_channels() -> None:
    for size in ((40, 31), (400, 350)):
        image = torch.randint(0, 256, (1, 3, *size), generator=GEN).float()
        wanted = [np.asarray(Image.fromarray(c.numpy()).resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255) for c in image[0]]
        assert np.abs(clean_resize(image)[0].numpy() - np.stack(wanted)).max() < 1e-4
        assert not torch.equal(clean_resize(image), clean_resize(image).round())


def test_tf_resize_starts_at_the_corner() -> None:
    """Output i looks at input i n / side, weights by its fraction; the last outputs repeat the last pixel."""
    x = torch.rand(1, 1, 5, 5, generator=GEN)
    found = tf_resize(x, 13)
    for i in range(13):
        for j in range(13):
            y, z = i * 5 / 13, j * 5 / 13
            a, b = int(y), int(z)
            rows = x[0, 0, a] * (1 - y + a) + x[0, 0, min(a + 1, 4)] * (y - a)
            assert float(found[0, 0, i, j]) == pytest.approx(float(rows[b] * (1 - z + b) + rows[min(b + 1, 4)] * (z - b)), abs=1e-5)
    assert not torch.allclose(found, F.interpolate(x, (13, 13), mode="bilinear"), atol=1e-2)


def test_names_need_the_pinned_weights(random_inception: Inception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_inception.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    other = inception(tmp_path / "w.safetensors")
    assert [title(n, other) for n in ("fd", "kd", "cs", "recall")] == ["fd-inception", "kd-inception", "cs-inception", "recall-inception"]
    file = tmp_path / "w.pth"
    torch.save(state, file)
    with pytest.raises(UserError, match="not the published file"):  # before it is unpickled
        inception(file)
    monkeypatch.setattr(engine_inception, "PINNED", hashlib.sha256(file.read_bytes()).hexdigest())
    pinned = inception(file)
    assert [title(n, pinned) for n in ("fd", "kd", "cs", "recall")] == ["FID", "KID", "IS", "recall-inception"]
    file.unlink()
    again = inception()  # from the cache, as safetensors
    x = COLORED[:2]
    assert torch.equal(again.features(x), pinned.features(x))
    assert torch.equal(other.features(x), pinned.features(x))
    expected = random_inception((clean_resize(x.float()) - 128) / 128)
    torch.testing.assert_close(pinned.features(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pinned.probabilities(expected), (expected @ state["fc.weight"].T).softmax(1))
    assert "299x299x3, antialiased bicubic in float" in pinned.how((3, 40, 31))
    assert "TensorFlow's bilinear" in inception(legacy=True).how((3, 40, 31))
    assert not torch.allclose(inception(legacy=True).features(x), expected, rtol=1e-2)
    assert len(pinned.stages(torch.zeros(1, 1, 8, 8))) == 4


def test_the_pinned_digest_is_the_one_in_the_files_name() -> None:
    assert len(PINNED) == 64
    assert f"-{PINNED[:8]}.pth" in engine_inception.URL


def test_other_weights_are_refused(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="not the weights of this network"):
        inception(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="no such file"):
        inception(tmp_path / "nothing.pth")


# ---- downloads


class Server(BaseHTTPRequestHandler):
    """Serves DATA, with ranges; breaks off the first answers in the middle, or says 503, as FAULTS says."""

    data, faults, ranges, seen = b"", [], True, []  # type: ignore[var-annotated]

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.seen.append(asked)
        fault = self.faults.pop(0) if self.faults else None
        start = int(asked.split("=")[1].rstrip("-")) if asked and self.ranges else 0
        if fault in (503, 404):
            self.send_error(fault)
            return
        if start >= len(self.data) and start:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.data) - start))
        self.end_headers()
        self.wfile.write(self.data[start : start + 1000] if fault == "cut" else self.data[start:])

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    Server.data, Server.faults, Server.ranges, Server.seen = bytes(range(256)) * 16, [], True, []
    http = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/w.pth"
    http.shutdown()
    http.server_close()
    thread.join()


def test_a_broken_download_goes_on(server: str, tmp_path: Path) -> None:
    digest = hashlib.sha256(Server.data).hexdigest()
    Server.faults = ["cut", 503, "cut"]
    assert download(server, tmp_path / "w", digest, pause=0).read_bytes() == Server.data
    assert Server.seen == [None, "bytes=1000-", "bytes=1000-", "bytes=2000-"]
    download(server, tmp_path / "w", digest)
    assert len(Server.seen) == 4  # what is there is not asked for again
    Server.faults, Server.ranges = ["cut"], False
    assert download(server, tmp_path / "v", digest, pause=0).read_bytes() == Server.data  # a server without ranges: anew
    assert {p.name for p in tmp_path.iterdir()} >= {"w", "v"}
    assert not list(tmp_path.glob("*.part"))


def test_another_file_is_refused_and_deleted(server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another file, and was deleted") as caught:
        download(server, tmp_path / "w", "0" * 64, pause=0)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("w*"))
    (tmp_path / "w.part").write_bytes(Server.data + b"more")  # a longer rest of something else
    with pytest.raises(UserError, match="another file"):
        download(server, tmp_path / "w", hashlib.sha256(Server.data).hexdigest(), pause=0)
    assert download(server, tmp_path / "w", hashlib.sha256(Server.data).hexdigest(), pause=0).exists()
    Server.faults = [404]
    with pytest.raises(UserError, match="404.*--weights"):
        download(server, tmp_path / "v", "0" * 64)
    Server.faults = [503, 503]
    with pytest.raises(UserError, match="cannot be downloaded"):
        download(server, tmp_path / "v", "0" * 64, tries=2, pause=0)


def test_inception_is_downloaded_once_and_checked(server: str, random_inception: Inception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_inception, "URL", server)
    with pytest.raises(UserError, match="another file"):
        inception()
    torch.save(random_inception.state_dict(), tmp_path / "made.pth")
    Server.data = (tmp_path / "made.pth").read_bytes()
    monkeypatch.setattr(engine_inception, "PINNED", hashlib.sha256(Server.data).hexdigest())
    said: list[str] = []
    assert inception(say=said.append).quoted["fd"] == "FID"
    assert any("downloading" in line for line in said)
    num = len(Server.seen)
    inception()
    assert len(Server.seen) == num


# ---- files, functions, names


def test_a_torchscript_file_and_a_function(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Toy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(net).save(str(tmp_path / "toy.ts"))
    found = extractor_named(str(tmp_path / "toy.ts"), TRAIN)
    assert (found.name, found.dim, title("fd", found)) == ("toy", 16, "fd-toy")
    assert found.weights == hashlib.sha256((tmp_path / "toy.ts").read_bytes()).hexdigest()[:8]
    torch.testing.assert_close(found.features(TEST.images[:5]), net(TEST.images[:5].expand(-1, 3, -1, -1)).detach())
    code = "def plain(images):\n    return images.flatten(2).float().mean(2) * {}\n\n\ndef bad(images):\n    return images\n"
    weights = []
    for factor in (1, 2):
        file = tmp_path / f"extractor_{factor}.py"
        file.write_text(code.format(factor))
        made = extractor_named(f"{file}:plain", TRAIN)
        weights.append(made.weights)
        assert made.dim == 3
    assert weights[0] != weights[1]  # what is kept follows what the function does
    with pytest.raises(UserError, match="one row of features"):
        extractor_named(f"{file}:bad", TRAIN)
    with pytest.raises(UserError, match="no function 'fine'"):
        extractor_named(f"{file}:fine", TRAIN)
    (tmp_path / "no.ts").write_bytes(b"not a network")
    with pytest.raises(UserError, match="not a TorchScript file"):
        extractor_named(str(tmp_path / "no.ts"), TRAIN)


@pytest.mark.parametrize(("name", "weights", "message"), [
    ("incepton", None, "did you mean inception"),
    ("nowhere.ts", None, "no such file"),
    (None, "w.safetensors", "belongs to an extractor"),
])
def test_unknown_extractors(name: str | None, weights: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        extractor_named(name, TRAIN, weights)
    assert "\n" not in str(caught.value)


# ---- DINOv2 and CLIP


def test_dinov2_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    torch.manual_seed(0)
    net = transformers.Dinov2Model(config).eval()
    net.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "preprocessor_config.json").write_text(
        '{"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}, "resample": 3, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}')
    found = extractor_named("dinov2", TRAIN, str(tmp_path / "tiny"))
    assert (found.name, found.dim, title("fd", found)) == ("dinov2-tiny", 24, "fd-dinov2")
    picture = Image.fromarray(COLORED[0].permute(1, 2, 0).numpy())  # 31 wide, 40 high
    small = picture.resize((32, int(40 * 32 / 31)), Image.Resampling.BICUBIC)
    top = (small.height - 28) // 2
    pixels = torch.from_numpy(np.asarray(small.crop((2, top, 30, top + 28))).copy()).permute(2, 0, 1)[None].float() / 255
    x = (pixels - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    with torch.no_grad():
        wanted = net(pixel_values=x).last_hidden_state[:, 0]
    assert (found.features(COLORED[:1]) - wanted).abs().max() < 0.05 * wanted.std()  # 8-bit rounding
    assert "shorter side to 32, antialiased bicubic, 8 bits, center 28x28" in found.how((3, 40, 31))
    with pytest.raises(UserError, match="needs predictions"):
        evaluate(TEST.images, None, TRAIN, TEST, found, ("cs",))


def test_clip_gives_unit_embeddings_and_cmmd(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
                                           projection_dim=12)
    torch.manual_seed(0)
    net = transformers.CLIPVisionModelWithProjection(config).eval()
    net.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "preprocessor_config.json").write_text('{"size": 16, "crop_size": 16, "resample": 3, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    found = extractor_named("clip", TRAIN, str(tmp_path / "tiny"))
    square = COLORED[:3, :, :16, :16]
    with torch.no_grad():
        wanted = F.normalize(net(pixel_values=square.float() / 255).image_embeds, dim=1)
    torch.testing.assert_close(found.features(square), wanted, rtol=1e-4, atol=1e-5)
    few = TRAIN.take(torch.arange(60))
    report = evaluate(TEST.images[:40], None, few, TEST.take(torch.arange(40)), found, ("cmmd", "fd"))
    assert [r.name for r in report.results] == ["fd-clip", "cmmd"]
    assert report["cmmd"].protocol["kernel"] == "Gaussian, sigma 10"
    (tmp_path / "tiny" / "preprocessor_config.json").write_text('{"resample": 0}')
    with pytest.raises(UserError, match="bicubic"):
        extractor_named("clip", TRAIN, str(tmp_path / "tiny"))
    with pytest.raises(UserError, match="not a dinov2 model"):
        extractor_named("dinov2", TRAIN, str(tmp_path))


# ---- statistics: one pass, any order, any parts


def gathered(order: Tensor, part: int) -> Statistics:
    found = Statistics(toy(), TRAIN.info.shape, seed=1, size=200)
    for rows in torch.split(order, part):
        found.update(TRAIN.images[rows], rows)
    return found


def same(a: Statistics, b: Statistics) -> None:
    """The same images kept, and everything else up to rounding."""
    assert torch.equal(a.numbers, b.numbers)
    assert torch.equal(a.modes.counts, b.modes.counts)
    assert torch.equal(a.prints.sort().values, b.prints.sort().values)
    torch.testing.assert_close(a.pool, b.pool, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a.moments.cov, b.moments.cov, rtol=1e-6, atol=1e-6)
    assert a.inception.score.value == pytest.approx(b.inception.score.value, rel=1e-6)


def test_order_batches_and_shards_change_nothing() -> None:
    n = len(TRAIN)
    whole = gathered(torch.arange(n), 512)
    assert len(whole.pool) == 200
    same(whole, gathered(torch.randperm(n, generator=GEN), 37))
    shards = [gathered(torch.arange(rank, n, 3), 100) for rank in range(3)]
    sent = [Statistics(toy(), TRAIN.info.shape, 1, 200).load(s.tensors()) for s in shards]
    same(whole, sent[0].merge(sent[1]).merge(sent[2]))
    torch.testing.assert_close(whole.moments.mean.float(), toy().features(TRAIN.images).mean(0), rtol=1e-5, atol=1e-5)
    ranks = [score_shard(toy(), TRAIN, TRAIN.info.shape, 1, rank, 2) for rank in range(2)]
    same(ranks[0].merge(ranks[1]), score_shard(toy(), TRAIN, TRAIN.info.shape, 1))


def test_scores_of_shards_are_those_of_one_process() -> None:
    names = ["fd", "kd", "precision", "recall", "density", "coverage", "mind", "authenticity", "nn-ratio", "vendi", "fd-inf", "cs", "modes"]
    fake = replace(TEST, images=255 - TEST.images)
    shards = [score_shard(toy(), fake, TRAIN.info.shape, 0, rank, 3) for rank in range(3)]
    merged = shards[0].merge(shards[1]).merge(shards[2])
    apart = score(merged, (1, 8, 8), TRAIN, TEST, names)
    whole = evaluate(fake.images, None, TRAIN, TEST, toy(), names)
    assert [r.name for r in apart.results] == [r.name for r in whole.results]
    for a, b in zip(apart.results, whole.results, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-5, abs=1e-9)
        assert dict(a.protocol, slope=0, **{"N-curve": ""}) == dict(b.protocol, slope=0, **{"N-curve": ""})
    assert apart.warnings == whole.warnings


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    """But for the 8 bytes an image that find copies."""
    found, sizes = Statistics(toy(), TRAIN.info.shape, size=100), []
    for start in range(0, len(TRAIN), 400):
        found.update(TRAIN.images[start : start + 400])
        sizes.append(sum(t.nbytes for name, t in found.tensors().items() if name != "prints"))
    assert sizes[0] == sizes[-1]
    assert found.prints.nbytes == 8 * len(TRAIN)


def test_the_pool_is_a_fair_draw() -> None:
    """Each image is kept equally often over the seeds: chi-square over 8 groups of numbers, 7 degrees of freedom, p = 0.001 at 24.3."""
    counts = torch.zeros(8)
    for seed in range(60):
        found = Statistics(toy(), TRAIN.info.shape, seed, size=40)
        found._pool(torch.arange(800), torch.zeros(800, 16))
        counts += torch.bincount(found.numbers // 100, minlength=8)
    assert float(((counts - 300) ** 2 / 300).sum()) < 24.3


def test_statistics_are_kept_by_content_and_checked(cache: Path) -> None:
    calls = []
    made = toy()
    counting = replace(made, embed=lambda x: (calls.append(len(x)), made.embed(x))[1])
    first = statistics_of(counting, TEST, TRAIN.info.shape)
    num = len(calls)
    same_again = statistics_of(counting, TEST, TRAIN.info.shape)
    assert len(calls) == num
    assert torch.equal(first.pool, same_again.pool)
    assert torch.equal(first.moments.scatter, same_again.moments.scatter)
    changed = replace(TEST, images=TEST.images.flip(0), labels=None, classes=())
    statistics_of(counting, changed, TRAIN.info.shape)
    assert len(calls) > num  # other content under the same name
    num = len(calls)
    statistics_of(replace(counting, weights="1"), TEST, TRAIN.info.shape)
    statistics_of(replace(counting, prepared="otherwise"), TEST, TRAIN.info.shape)
    statistics_of(counting, TEST, TRAIN.info.shape, seed=1)
    assert len(calls) >= num + 3
    num = len(calls)
    for file in cache.rglob("statistics-*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-3] ^= 64
        file.write_bytes(bytes(data))
    again = statistics_of(counting, TEST, TRAIN.info.shape)
    assert len(calls) > num
    assert torch.equal(again.pool, first.pool)


# ---- against torchmetrics, with the same extractor


def test_scores_agree_with_torchmetrics() -> None:
    """Frechet distance, kernel distance and Inception Score of the same custom module."""
    fid = pytest.importorskip("torchmetrics.image.fid")
    kid = pytest.importorskip("torchmetrics.image.kid")
    inc = pytest.importorskip("torchmetrics.image.inception")
    torch.manual_seed(0)
    net, made = Toy().requires_grad_(False), toy()
    net.num_features = 16  # type: ignore[assignment]
    real, fake = (x.expand(-1, 3, -1, -1) for x in (TRAIN.images, 255 - TEST.images))
    report = evaluate(fake[:, :1], None, TRAIN, TEST, made, ("fd", "kd", "cs"))
    theirs = fid.FrechetInceptionDistance(feature=net, input_img_size=(3, 8, 8))
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    assert report["fd-toy"].value == pytest.approx(float(theirs.compute()), rel=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of memory
        theirs = kid.KernelInceptionDistance(feature=net, subsets=100, subset_size=len(fake) // 2)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    mean, spread = theirs.compute()
    assert report["kd-toy"].value == pytest.approx(float(mean), abs=4 * float(spread) / 100**0.5 + 4 * float(spread) / 50**0.5)

    class Logits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 4 * net(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        theirs = inc.InceptionScore(feature=Logits(), splits=1)
        theirs.update(fake)
        wanted = float(theirs.compute()[0])  # warns that one split has no deviation
    whole = inception_score(made.probabilities(made.features(fake[:, :1])), num_splits=1)
    assert whole.value == pytest.approx(wanted, rel=1e-5)
    assert report["cs-toy"].value == pytest.approx(wanted, rel=0.15)  # the mean over 10 splits, of few samples each


def test_intervals_and_memorization() -> None:
    """Copies: no authenticity, ratio 0, far below the floor. Unseen images: at the floor, and the interval of fd-like scores is around it."""
    names = ("fd", "authenticity", "nn-ratio", "nn-closer", "ct", "vendi", "modes", "modes-kl", "mind", "fd-inf", "mmd")
    copies = evaluate(TRAIN.images[:300], None, TRAIN, TEST, toy(), names)
    assert copies["authenticity-toy"].value == 0
    assert copies["nn-ratio-toy"].value == 0
    assert copies["nn-closer-toy"].value == 1
    assert copies["ct-toy"].value < -10
    assert copies["nn-ratio-toy"].floor == pytest.approx(1)
    fair = evaluate(TEST.images, None, TRAIN, TEST, toy(), ("fd", "precision", "mind", "authenticity"), num_bootstrap=10)
    for result in fair.results:
        assert result.interval is not None
        assert result.interval[0] < result.interval[1]
        assert result.error is not None and result.error > 0
        assert result.protocol["bootstrap"] == 10
    assert "[" in fair.table()[0]["value"]
    assert "N-curve" in copies["fd-inf-toy"].protocol
    assert copies["fd-inf-toy"].value < copies["fd-toy"].value


def test_sets_without_test_images_have_no_floor() -> None:
    none = evaluate(TEST.images, None, TRAIN, TEST.take(torch.arange(0)), toy(), ("fd",))
    assert none["fd-toy"].floor is None
    with pytest.raises(UserError, match="nn-ratio needs test images"):
        evaluate(TEST.images, None, TRAIN, TEST.take(torch.arange(0)), toy(), ("nn-ratio",))
    assert Sets(Statistics(toy(), TRAIN.info.shape), Statistics(toy(), TRAIN.info.shape), None).num_bootstrap == 0


@pytest.mark.parametrize("name", ["FID", "KID", "IS", "CMMD"])
def test_published_names_are_refused_without_the_published_extractor(name: str) -> None:
    with pytest.raises(UserError, match=f"unknown metric '{name}'.*published weights"):
        evaluate(TEST.images, None, TRAIN, TEST, toy(), (name,))


def test_images_of_another_kind_are_refused() -> None:
    with pytest.raises(UserError, match="uint8"):
        toy().features(torch.zeros(2, 3, 8, 8))
    bad = ImageSet(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), None, ())
    broken = replace(toy(), embed=lambda x: torch.full((len(x), 16), float("nan")))
    with pytest.raises(UserError, match="not finite"):
        statistics_of(broken, bad, bad.info.shape)
