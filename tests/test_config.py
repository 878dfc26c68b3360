"""Unions of dataclasses in a config: JSON with a tag among the union's own members, the command line, and old files without a tag."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import dedent

import pytest
from torch import nn

from pixelkiln.core.catalog import override, stages_from_json, stages_to_json
from pixelkiln.core.config import apply, flat_fields, from_json, parse, to_json
from pixelkiln.core.listing import options
from pixelkiln.core.recipe import Recipe, Stage
from pixelkiln.core.types import UserError
from pixelkiln.methods.pca import PCA
from pixelkiln.nets.backbone import DiTConfig, MLPConfig, MPUNetConfig, NetConfig, UNetConfig


@dataclass(frozen=True)
class Model:
    net: NetConfig = field(default_factory=UNetConfig)
    spare: MLPConfig | DiTConfig | None = None
    dim: int = 8


NETS = [UNetConfig(width=8), MPUNetConfig(mults=(1, 2, 4)), DiTConfig(depth=2, positions="sincos"), MLPConfig(width=5)]


@pytest.mark.parametrize("net", NETS, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("spare", [None, DiTConfig(width=64), MLPConfig()], ids=["none", "dit", "mlp"])
def test_a_union_survives_json_whatever_is_in_it(net: NetConfig, spare: DiTConfig | MLPConfig | None) -> None:
    model = Model(net, spare)
    text = json.dumps(to_json(model))
    assert from_json(Model, json.loads(text)) == model
    assert json.loads(text)["net"]["kind"] == type(net).__name__.removesuffix("Config").lower()


def test_a_file_without_a_tag_is_the_first_member_and_a_plain_dataclass_has_none() -> None:
    data = to_json(Model(UNetConfig(width=24)))
    del data["net"]["kind"]
    assert from_json(Model, data) == Model(UNetConfig(width=24))
    assert "kind" not in to_json(UNetConfig())


@pytest.mark.parametrize(("net", "says"), [
    ({"kind": "dot"}, "unknown kind 'dot'; did you mean dit?"),
    ({"kind": ["dit"]}, "unknown kind"),
    ({"kind": None}, "unknown kind"),
    ({"kind": "dit", "mults": [1]}, "config.net: unknown field 'mults'"),
    ({"kind": "dit", "depth": "4"}, "config.net.depth: expected int"),
    ({"kind": "dit", "norm": "batch"}, "not one of rms, layer"),
    (None, "expected an object"),
    ([1], "expected an object"),
    ("dit", "expected an object"),
])  # fmt: skip
def test_what_is_no_member_is_refused(net: object, says: str) -> None:
    with pytest.raises(UserError, match=says.replace("?", r"\?")):
        from_json(Model, {"net": net})


def test_leaves_are_the_choice_and_the_fields_of_what_is_chosen() -> None:
    leaves = {leaf.name: leaf for leaf in flat_fields(Model(DiTConfig()))}
    assert leaves["net"].value == "dit"
    assert leaves["net"].words == "unet|mpunet|dit|mlp"
    assert leaves["spare"].value is None
    assert leaves["spare"].words == "mlp|dit|none"
    assert {"net.depth", "net.qk_norm", "dim"} <= leaves.keys()
    assert "net.mults" not in leaves
    assert parse(leaves["net"].kind, "mlp", "net") == MLPConfig()
    assert parse(leaves["spare"].kind, "none", "spare") is None
    assert apply(Model(), ("net",), MLPConfig(), "net") == Model(MLPConfig())


class Toy(PCA):
    """Only its config matters."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


def toy() -> Recipe:
    return Recipe((Stage(Toy, Model()),), "test", "none", "a toy")


def test_the_command_line_takes_a_member_and_sets_its_fields_in_any_order() -> None:
    changed = override(toy(), {"model.net.depth": "2", "model.dim": "4", "model.net": "dit", "model.net.positions": "sincos"})
    assert changed.last.model == Model(DiTConfig(depth=2, positions="sincos"), dim=4)
    assert stages_from_json(toy(), json.loads(json.dumps(stages_to_json(changed.stages))), "here") == changed
    assert override(toy(), {"model.net.width": "12"}).last.model == Model(UNetConfig(width=12))


@pytest.mark.parametrize(("changes", "says"), [
    ({"model.net": "dti"}, "--model.net: 'dti' is not one of unet, mpunet, dit, mlp"),
    ({"model.net.depth": "2"}, "unknown option --model.net.depth"),
    ({"model.net": "dit", "model.net.dept": "2"}, "unknown option --model.net.dept; did you mean model.net.depth"),
    ({"model.net": "dit", "model.net.norm": "batch"}, "--model.net.norm: 'batch' is not one of rms, layer"),
])  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_line(changes: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as error:
        override(toy(), changes)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_the_help_lists_the_fields_of_every_member(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(dedent('''
        from dataclasses import dataclass, field
        from pixelkiln.core.recipe import Recipe, Size, Stage
        from pixelkiln.methods.pca import PCA
        from pixelkiln.nets.backbone import NetConfig, UNetConfig

        @dataclass(frozen=True)
        class Model:
            net: NetConfig = field(default_factory=UNetConfig)

        def mine(size: Size = "small") -> Recipe:
            return Recipe((Stage(PCA, Model()),), "test", "none", "a toy")
    '''))
    shown = {o.name: o for o in options(f"{tmp_path / 'mine.py'}:mine", "tiny")}
    assert shown["model.net"].words == "unet|mpunet|dit|mlp"
    assert shown["model.net.width"].default == str(UNetConfig().width)
    assert shown["model.net.depth"].default == f"{DiTConfig().depth} of dit"
    assert len(shown) == len({*shown})


def test_members_are_told_apart_by_type_not_by_value() -> None:
    twin = replace(Model(), net=MPUNetConfig(**vars(UNetConfig())))
    assert from_json(Model, to_json(twin)) == twin != Model()
