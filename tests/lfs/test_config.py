"""Configs: where values come from, where paths start, and what is stored."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from lfs.config import (
    HYPER_PARAMETER_FREE,
    FixedListConfig,
    RandomConfig,
    ReinforceConfig,
    RunConfig,
    SearchConfig,
)
from lfs.config_file import ConfigError, load_config, overridden, validated
from lfs.journal import Started
from search_space import AMLFS, CombinedMargin, ModulatingBins, ModulatingFactor, Space, Unified, catalog
from search_space.spaces import SPACES
from trainers.recipe import Recipe

EVERYTHING = """
seed = 7
[data]
path = "faces.zip"
kind = "photo"
image_size = 64
[recipe]
width = 16
augmentation = { flip = true, shift = 0.1 }
[space]
kind = "modulating_factor"
scale = 16
[search]
method = "fixed_list"
losses = [{ loss = "arcface", parameters = { margin_rad = 0.3 } }, { loss = "softmax", name = "plain" }]
[[baselines]]
loss = "cosface"
name = "cos"
parameters = { margin = 0.1, scale = 16.0 }
recipe = { learning_rate = 0.05 }
[executor]
kind = "serial"
trial_timeout_seconds = 60
[tracking]
enabled = false
uri = "sqlite:///tracked.db"
"""


def written(folder: Path, toml: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "run.toml").write_text(toml, encoding="utf-8")
    return folder / "run.toml"


def test_no_file_is_all_defaults() -> None:
    config = load_config(None)
    assert config == RunConfig()
    assert config.data.path is None
    assert config.search == ReinforceConfig()
    assert config.space == CombinedMargin()
    assert Recipe.model_validate(config.recipe) == Recipe()


def test_the_hyper_parameter_free_losses_are_always_among_the_baselines() -> None:
    config = load_config(None, ["baselines=[]"])
    assert config.all_baselines() == HYPER_PARAMETER_FREE
    assert {loss.loss for loss in config.all_baselines()} == {"adacos_dynamic", "adacos_fixed", "p2sgrad"}


def test_a_file_sets_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, EVERYTHING))
    assert config.seed == 7
    assert config.data.image_size == 64
    assert config.data.min_images_per_class == RunConfig().data.min_images_per_class
    assert Recipe.model_validate(config.recipe).augmentation.shift == 0.1
    assert config.space == ModulatingFactor(scale=16)
    assert isinstance(config.search, FixedListConfig)
    assert [loss.title for loss in config.search.losses] == ["arcface", "plain"]
    assert config.search.losses[0].spec() == catalog.arcface(margin_rad=0.3)
    assert config.baselines[0].spec() == catalog.cosface(margin=0.1, scale=16)
    assert config.executor.trial_timeout_seconds == 60
    assert config.tracking.uri == f"sqlite:///{tmp_path}/tracked.db"


def test_a_table_without_its_kind_is_of_the_default_kind(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "[space]\nm1 = [1, 2]\n[search]\nbatch = 6"))
    assert config.space == CombinedMargin(m1=(1, 2))
    assert config.search == ReinforceConfig(batch=6)


@pytest.mark.parametrize(
    ("table", "space"),
    [
        ('kind = "unified"', Unified()),
        ('kind = "modulating_bins"\nscale = 16\nmargin_high = 0.4', ModulatingBins(scale=16, margin_high=0.4)),
        (
            'kind = "am_lfs"\nmode = "free"\npieces = 5\nscale = 16\ngradient = "detached"',
            AMLFS(mode="free", pieces=5, scale=16, gradient="detached"),
        ),
    ],
)
def test_a_space_is_a_table(table: str, space: Space, tmp_path: Path) -> None:
    config = load_config(written(tmp_path, f'[search]\nmethod = "random"\n[space]\n{table}'))
    assert config.space == space


def test_a_gaussian_over_choices_is_refused_with_what_works_instead() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^search.method = 'reinforce' moves a Gaussian over intervals, but space.kind = 'unified' has choices; "
        r"use search.method = 'random' or another space.kind$",
    ):
        load_config(None, ["space.kind=unified"])
    losses = "search={method='fixed_list', losses=[{loss='softmax'}]}"
    assert load_config(None, ["space.kind=unified", losses]).space == Unified()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("space={kind='am_lfs', mode='both'}", "space.mode: must be 'continuous' or 'free', but got 'both'"),
        ("space={kind='am_lfs', pieces=1}", "space.pieces: must be at least 2, but got 1"),
        ("space={kind='modulating_bins', margin_high=2}", "space.margin_high: must be at most 1, but got 2"),
        ("space={kind='modulating_bins', scale=1000}", "space: scale·margin_high must be at most 512, but got 600"),
        ("space={kind='unified', scale=16}", "unknown key 'space.scale' in the config; known are kind"),
    ],
)
def test_wrong_fields_of_a_space_are_refused_with_a_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        load_config(None, [override])


def test_a_path_in_the_file_starts_at_the_file_and_others_at_the_working_directory(here: Path) -> None:
    config = written(here / "configs", '[data]\npath = "faces"')
    assert load_config(config).data.path == here / "configs" / "faces"
    assert load_config(Path("configs/run.toml")).data.path == here / "configs" / "faces"
    assert load_config(config, data_path=Path("others")).data.path == here / "others"
    assert load_config(config, ["data.path=others"]).data.path == here / "others"


def test_an_absolute_path_and_a_home_stay(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    config = written(here / "configs", '[data]\npath = "~/faces"')
    assert load_config(config).data.path == Path("/home/ada/faces")
    assert load_config(config, ["data.path=/srv/faces"]).data.path == Path("/srv/faces")


@pytest.mark.parametrize("name", ["it's.zip", 'a "b".zip', "back\\slash", "a=b", "grüße 北.zip"])
def test_any_name_can_be_the_data(name: str, here: Path) -> None:
    assert load_config(None, data_path=Path(name)).data.path == here / name


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("seed=3", ["seed"], 3),
        ("recipe.learning_rate=0.05", ["recipe", "learning_rate"], 0.05),
        ("recipe.network=resnet", ["recipe", "network"], "resnet"),
        ('recipe.network="resnet"', ["recipe", "network"], "resnet"),
        ("tracking.uri=http://host:5000/?a=b", ["tracking", "uri"], "http://host:5000/?a=b"),
        ("tracking.enabled=false", ["tracking", "enabled"], False),
        ("recipe.augmentation={flip=true}", ["recipe", "augmentation"], {"flip": True}),
        ("recipe.augmentation.flip=true", ["recipe", "augmentation"], {"flip": True}),
        ("search.batch = 8", ["search", "batch"], 8),
    ],
)
def test_set_reads_toml_and_bare_words(override: str, keys: list[str], value: object) -> None:
    found: Any = load_config(None, [override])
    for key in keys:
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    assert found == value


def test_set_takes_lists_and_tables_of_tables() -> None:
    overrides = ["space.m1=[1, 3]", 'baselines=[{loss="softmax", parameters={scale=8.0}}]']
    config = load_config(None, overrides)
    assert config.space == CombinedMargin(m1=(1, 3))
    assert [loss.spec() for loss in config.baselines] == [catalog.softmax(scale=8)]


def test_set_wins_over_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, EVERYTHING), ["seed=8", "seed=9", "search={method='random'}"])
    assert config.seed == 9
    assert config.search == RandomConfig()
    assert config.data.image_size == 64


def test_a_config_cannot_be_changed() -> None:
    config = load_config(None)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.search.batch = 8  # type: ignore[misc, union-attr]


@pytest.mark.parametrize("toml", ["", EVERYTHING, '[search]\nmethod = "random"\n[space]\nkind = "unified"'])
def test_the_stored_config_is_the_config(toml: str, tmp_path: Path) -> None:
    config = load_config(written(tmp_path, toml))
    begun = Started(search_id="0", config=config.model_dump(mode="json"), data={}, versions={}, numerics={})
    stored = Started.model_validate_json(begun.model_dump_json()).config
    assert validated(stored) == config
    assert overridden(stored, ["executor.workers=2"]).executor.workers == 2
    assert overridden(stored, []) == config
    assert stored == begun.config


METHODS = [config.model_fields["method"].default for config in get_args(get_args(SearchConfig)[0])]


@pytest.mark.parametrize(
    ("table", "beside"),
    [
        *(("space", f'{{kind="{kind}", sed=1}}') for kind in SPACES),
        *(
            ("search", f'{{method="{method}", losses=[{{loss="softmax"}}], loss={{loss="softmax"}}, sed=1}}')
            for method in METHODS
        ),
        ("search", '{method="fixed_list", losses=[{loss="softmax", sed=1}]}'),
        ("search", '{method="fixed_list", losses=[{loss="softmax", recipe={sed=1}}]}'),
        ("baselines", '[{loss="softmax", sed=1}]'),
        *((table, "{sed=1}") for table in ("data", "executor", "recipe", "recipe.augmentation", "tracking")),
    ],
)
def test_an_unknown_key_of_any_table_is_answered_with_the_known_ones(table: str, beside: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^unknown key '{table}\.[a-z0-9.]+' in the config; (did you mean|known are) "
    ):
        load_config(None, [f"{table}={beside}"])
