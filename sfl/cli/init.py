"""`sfl init` and `sfl config show`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from sfl.config import dump_toml, load_run
from sfl.errors import ConfigError, ModelError

TEMPLATE = """\
# A run of sfl. Every setting, its default and its meaning: docs/configuration.md
# Start it with:   sfl run {name}

[run]
rounds = 4                    # each trains on every device and ends in one average
seed = 0
topology = "vanilla"          # or "u_shaped": labels and logits never leave the device
# min_devices = 2             # fewest devices a round may close with (default: all but one)

[model]
path = "path/to/model"        # a Hugging Face folder or a name on the hub (safetensors)
task = "causal_lm"            # or "sequence_classification", with labels = ["...", "..."]
max_length = 256              # in tokens; longer prompts are cut from the left

[lora]
rank = 8
alpha = 16
# target_modules = ["q_proj", "v_proj"]   # default: every linear layer of a block

[training]
batch_size = 8
local_epochs = 1              # or local_steps = 50
learning_rate = 1e-3
schedule = "linear"           # "cosine", "constant"
# max_grad_norm = 1.0
# micro_batches = 2           # cut a batch up, so that device and edge overlap

# [aggregation]
# strategy = "fedprox"        # default: "fedavg"; which one: docs/aggregation.md

[codec]
activation = "compact"        # or none, fp16, int8, sft, extreme, or stages: docs/compression.md
gradient = "compact"

[data]
prompt_field = "prompt"       # JSONL, CSV, TSV, Parquet or a Hugging Face dataset with these
completion_field = "completion"
# text_field = "text"         # plain text, or the text to classify
# label_field = "label"
eval_fraction = 0.1           # held out on each device where it names no eval file
# train = "all.jsonl"         # one file for all devices ...
# partition = "dirichlet"     # ... shared out "iid", by "field" or "dirichlet"

[[devices]]                   # one entry a device; under `sfl run` each is a process here
name = "alpha"
cut_layer = 1                 # transformer blocks on the device
train = "data/alpha.jsonl"    # private: never leaves the device
# eval = "data/alpha-eval.jsonl"

[[devices]]
name = "beta"
cut_layer = 2
train = "data/beta.jsonl"
"""


def write_config(path: Path, force: bool) -> None:
    """Write the commented template. Raises ConfigError where it exists or cannot be written."""
    if path.exists() and not force:
        raise ConfigError("path", str(path), "the file exists", "Choose another, or pass --force.")
    try:
        path.write_text(TEMPLATE.format(name=path), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "path", str(path), f"cannot be written ({error.strerror})", "Name a file elsewhere."
        ) from None
    typer.echo(f"wrote {path}: set model.path and the devices' data, then `sfl run {path}`")


def show_config(path: Path, overrides: Iterable[str], as_json: bool) -> None:
    """Print what takes effect, as TOML that `sfl run` reads or as JSON."""
    from sfl.cli.launch.run import bounded, resolved
    from sfl.config.effective import in_full
    from sfl.config.plugins import with_packages
    from sfl.models.families import FAMILIES
    from sfl.models.folder import open_model

    config = load_run(path, overrides)
    targets: tuple[str, ...] = ()
    try:
        folder = open_model(config.model.path, weights=False)
    except ModelError as error:
        typer.secho(f"without what the model decides: {error}", err=True, fg="yellow")
    else:
        config = bounded(config, folder.context_length)
        config = with_packages(config, FAMILIES.package(folder.model_type))
        targets = folder.family.targets(folder.model_type)
    full = in_full(resolved(config), targets)
    typer.echo(full.model_dump_json(indent=2) + "\n" if as_json else dump_toml(full), nl=False)
