"""Prompts: weights, chunks, alternatives, wildcards, files; what the encoders make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'pixelkiln[pretrained]'")
import pipelines
from pipelines import direct, imagine, pixels, recipe
from pixelkiln.core.types import UserError
from pixelkiln.pretrained.embed import _chunks, embedded, needs_embedding, slerp
from pixelkiln.pretrained.order import Order, batches
from pixelkiln.pretrained.prompts import alternatives, from_file, parse_weights, styled, wildcards

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("no_network")]
LONG = " ".join(f"word{'abcdefghij'[i % 10]}" for i in range(60))  # five letters are five tokens here


@pytest.mark.parametrize(
    ("prompt", "text", "weights"),
    [("a (red:1.5) cat", "a red cat", {1.5: "red"}), ("(a (b:2) c:0.5)", "a b c", {0.5: "a  c", 1.0: "b"}), ("plain (words) here", "plain (words) here", {}),
     (r"\(a:1.2\)", "(a:1.2)", {}), ("(time 12:30)", "(time 12:30)", {30: None}), ("((x:2):2)", "x", {4.0: "x"}), ("(open:1.2", "(open:1.2", {}),
     ("a:1.3)", "a:1.3)", {}), ("(é:1.1)", "é", {1.1: "é"}), ("", "", {})],
)
def test_weights_in_a_prompt(prompt: str, text: str, weights: dict[float, str | None]) -> None:
    if None in weights.values():
        with pytest.raises(UserError, match="not between 0 and 10"):
            parse_weights(prompt)
        return
    found = parse_weights(prompt)
    assert found.text == text and len(found.weights) == len(text)
    for weight, letters in weights.items():
        assert "".join(c for c, w in zip(text, found.weights) if abs(w - weight) < 1e-9) == letters
    assert parse_weights(prompt, literal=True).text == prompt


def test_alternatives_wildcards_styles_and_files(tmp_path: Path) -> None:
    assert alternatives("a {red|blue} {cat|dog}") == ["a red cat", "a red dog", "a blue cat", "a blue dog"]
    assert alternatives("a {b} c") == ["a {b} c"]
    with pytest.raises(UserError, match="leave some out"):
        alternatives("{a|b}" * 20)
    (tmp_path / "animal.txt").write_text("# comment\ncat\n\ndog\nfox\n")
    drawn = [wildcards("a __animal__ and a __animal__", seed, tmp_path) for seed in range(60)]
    assert drawn == [wildcards("a __animal__ and a __animal__", seed, tmp_path) for seed in range(60)]
    assert len(set(drawn)) == 9
    with pytest.raises(UserError, match=r"none\.txt"):
        wildcards("__none__", 0, tmp_path)
    assert styled("a lake", "Monet") == "a lake, in the style of Monet"
    assert styled("a lake", "oil painting of {}") == "oil painting of a lake"
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    for name, said in (("bad.txt", "UTF-8"), ("none.txt", "no such file")):
        with pytest.raises(UserError, match=said):
            from_file(tmp_path / name)


def test_batches_hold_neighbors_with_the_same_settings() -> None:
    orders = [Order("a"), Order("b", seed=3), Order("c", steps=9), Order("d", steps=9), Order("e", steps=9)]
    assert batches(orders, 2, [False] * 5) == [[0, 1], [2, 3], [4]]
    assert batches(orders, 9, [False, True, False, False, False]) == [[0], [1], [2, 3, 4]]


def test_slerp_keeps_length_and_angle() -> None:
    x, y = torch.nn.functional.normalize(torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    for t in (0.25, 0.5, 0.9):
        z = slerp(x, y, t)
        assert torch.allclose(z.norm(dim=-1), torch.ones(5), atol=1e-5)
        whole, part = (torch.acos((x * v).sum(-1)) for v in (y, z))
        assert torch.allclose(part, t * whole, atol=1e-3)
    assert torch.equal(slerp(x, y, 0), x) and torch.equal(slerp(x, y, 1), y)
    assert torch.allclose(slerp(x, x, 0.3), x) and torch.allclose(slerp(x, -x, 0.25), 0.5 * x, atol=1e-6)


@pytest.fixture
def pipe(models: Path, request: pytest.FixtureRequest) -> Any:
    from diffusers import AutoPipelineForText2Image

    return AutoPipelineForText2Image.from_pretrained(pipelines.folder(models, request.param))


@pytest.mark.parametrize("pipe", ["sd", "sdxl", "sd3", "flux", "pixart"], indirect=True)
def test_a_weight_moves_its_tokens_alone_in_proportion(pipe: Any) -> None:
    plain, half, twice, empty = (embedded(pipe, Order(p), True)["prompt_embeds"] for p in ("a red cat", "a (red:0.5) cat", "a (red:2) cat", ""))
    moved = (twice - plain).abs().sum(-1)[0] > 1e-6
    assert 1 <= int(moved.sum()) <= 8 and int(moved.sum()) < plain.shape[1] // 4
    assert torch.allclose(twice - plain, plain - empty, atol=1e-5) is False
    assert torch.allclose((twice - empty)[:, moved], 2 * (plain - empty)[:, moved], atol=1e-5)
    assert torch.allclose((half - empty)[:, moved], 0.5 * (plain - empty)[:, moved], atol=1e-5)
    if pipe.__class__.__name__.startswith("StableDiffusion"):
        tokens = pipe.tokenizer("a red cat").input_ids
        assert int(moved.nonzero()[0]) == tokens.index(pipe.tokenizer("red").input_ids[1]), "the token of the word"
    assert not needs_embedding(pipe, Order("a red cat")) and needs_embedding(pipe, Order("a (red:2) cat"))
    assert not needs_embedding(pipe, Order("a (red:2) cat", literal=True))


@pytest.mark.parametrize("pipe", ["sd", "sdxl", "sd3"], indirect=True)
@torch.no_grad()  # T5 takes another kernel of attention where its bias has a gradient, and rounds otherwise
def test_a_long_prompt_is_encoded_in_chunks(pipe: Any) -> None:
    chunks = _chunks(pipe, parse_weights(LONG))
    assert " ".join(c.text for c in chunks) == LONG and len(chunks) == 4
    assert all(len(pipe.tokenizer(c.text).input_ids) <= 77 for c in chunks)
    found = embedded(pipe, Order(LONG, "fog"), True)
    plus, minus = found["prompt_embeds"], found["negative_prompt_embeds"]
    assert plus.shape == minus.shape
    assert plus.shape[1] == 4 * 77 + (256 if "3" in type(pipe).__name__ else 0)
    call: dict[str, Any] = {"prompt_2": None} if hasattr(pipe, "tokenizer_2") else {}
    call |= {"prompt_3": LONG} if hasattr(pipe, "tokenizer_3") else {}
    second = pipe.encode_prompt(chunks[1].text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, **call)[0]
    assert torch.equal(plus[:, 77:154], second[:, :77])
    first = pipe.encode_prompt(chunks[0].text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, **call)
    if len(first) == 4:
        assert torch.equal(found["pooled_prompt_embeds"], first[2])
    if "3" in type(pipe).__name__:
        assert torch.equal(plus[:, 308:], second[:, 77:]), "T5 sees the whole prompt"


def test_words_beyond_the_first_chunk_change_the_image(models: Path, tmp_path: Path) -> None:
    model = pipelines.folder(models, "sd")
    for name, prompt in (("a", f"{LONG} dog"), ("b", f"{LONG} owl")):
        assert imagine(model, prompt, "--steps", 1, "--size", 16, "--guidance", 9, "--out", tmp_path / name) == 0
    assert not np.array_equal(pixels(tmp_path / "a" / "000000.png"), pixels(tmp_path / "b" / "000000.png"))
    cut = [direct(model, prompt=f"{LONG} {w}", num_inference_steps=1, width=16, height=16, seed=0, guidance_scale=9.0) for w in ("dog", "owl")]
    assert np.array_equal(*cut), "diffusers cuts them off"


def test_prompts_from_a_file_with_wildcards_by_the_seed(models: Path, tmp_path: Path) -> None:
    model = pipelines.folder(models, "sd")
    (tmp_path / "prompts.txt").write_text("a __animal__ in a forest\n# not this\n\na {red|blue} lake\n")
    (tmp_path / "animal.txt").write_text("fox\nowl\ncat\nelk\n")
    words = (model, "--prompts", tmp_path / "prompts.txt", "--wildcards", tmp_path, "-n", 2, "--seed", 4, "--steps", 1, "--size", 16, "--batch", 3, "--out", tmp_path / "out")
    assert imagine(*words) == 0
    found = [recipe(tmp_path / "out" / f"{i:06d}.png")["order"] for i in range(6)]
    animals = [wildcards("a __animal__ in a forest", seed, tmp_path) for seed in (4, 5)]
    assert [(o["prompt"], o["seed"]) for o in found] == [(animals[0], 4), (animals[1], 5), *((f"a {c} lake", s) for c in ("red", "blue") for s in (4, 5))]
    assert not (tmp_path / "out" / "000006.png").exists()


def test_sana_refuses_weights_in_one_line(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imagine(pipelines.folder(models, "sana"), "a (red:2) cat", "--steps", 1, "--size", 32, "--out", tmp_path / "x") == 2
    assert "takes no weights" in capsys.readouterr().err


def test_titles_take_the_room_that_they_need_and_no_more() -> None:
    from pixelkiln.pretrained.sheets import PAD, sheet

    images = {i: torch.zeros(3, 120, 120, dtype=torch.uint8) for i in range(2)}
    bare, short, long = (sheet(images, 2, 2, [title, "b"]) if title else sheet(images, 2, 2) for title in ("", "a", "a landscape with mountains " * 9))
    assert bare.shape == (3, 2 * PAD + 120, 3 * PAD + 240)
    line = short.shape[1] - bare.shape[1]
    assert line > 10 and long.shape[1] - bare.shape[1] == 3 * line, "three lines at most"
    heads = sheet(images, 2, 2, heads=["Monet", "van Gogh"], sides=["a lake"])
    assert heads.shape[1] == bare.shape[1] + line + PAD
    assert (heads[:, :PAD + line] < 99).any() and (heads[:, line + 2 * PAD :, :150] < 99).any(), "words above and beside"
    assert (heads[:, -PAD - 120 : -PAD, -PAD - 120 : -PAD] == 0).all(), "the picture whole"
    assert (sheet({0: images[0]}, 2, 2)[:, PAD : PAD + 120, -PAD - 120 : -PAD] == 211).all(), "a missing one is grey"
