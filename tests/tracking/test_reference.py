"""The band of published GPT-2 124M runs: what it is, for which runs, and what is said about them."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2lab import cli
from gpt2lab.config import yaml_format
from gpt2lab.tracking import records, reference, report
from gpt2lab.training.live_report import LiveReport

TABLE = yaml_format.read(reference.Path(reference.__file__).with_name("reference_curves.yaml"))
AT_10B = {"train.total_batch_size": 10**9 // 3, "data.source": "fineweb-edu"}  # 30 steps of make_run


@pytest.fixture
def make_large_run(make_run):
    """A run of 10B tokens in 30 steps, that ends at a loss."""

    def make(loss=3.08, settings=AT_10B, shard="edufineweb_val_000000.npy", **facts):
        folder = make_run(settings=settings)
        path = folder / "environment.json"
        content = json.loads(path.read_text()) | {"data": {"val_shard": shard}} | facts
        path.write_text(json.dumps(content))
        metrics = folder / "metrics.jsonl"
        *lines, last = metrics.read_text().splitlines()
        metrics.write_text("\n".join([*lines, json.dumps(json.loads(last) | {"val/loss": loss})]) + "\n")
        return folder

    return make


def test_every_curve_names_its_source_and_falls_as_losses_do():
    for name, log in TABLE.items():
        assert re.search(r"github\.com/\S+/\S+, \S+.* commit [0-9a-f]{12}", log["source"]), name
        assert log["data"] in reference.DATA_SETS
        steps, losses = list(log["validation_loss"]), list(log["validation_loss"].values())
        assert steps == sorted(steps)
        assert losses == sorted(losses, reverse=True)
        assert all(0.23 < accuracy < 0.31 for accuracy in log.get("hellaswag", {}).values())
        assert log.get("hellaswag", {}).keys() <= log["validation_loss"].keys()


@pytest.mark.parametrize("key", ["val/loss", "hellaswag/acc_norm"])
@pytest.mark.parametrize("data_set", reference.DATA_SETS)
def test_the_band_holds_every_published_measurement_with_its_margin(data_set, key):
    band = reference.build_band(data_set, key)
    assert not np.isnan([band.low, band.high]).any()
    for log in TABLE.values():
        points = log.get({"val/loss": "validation_loss", "hellaswag/acc_norm": "hellaswag"}[key], {})
        for step, value in points.items() if log["data"] == data_set else ():
            at = np.searchsorted(band.tokens, step * log["tokens_per_step"])
            margin = 0.0099 * value if key == "val/loss" else 0.008
            assert band.low[at] <= value - margin
            assert band.high[at] >= value + margin


def test_fewer_items_widen_the_band_of_an_accuracy():
    few, all_items = (reference.build_band("fineweb-edu", "hellaswag/acc_norm", items) for items in (100, 10_042))
    assert (few.low < all_items.low - 0.05).all()


@pytest.mark.parametrize(
    ("loss", "place"), [(3.0, "ahead of"), (3.02, "within"), (3.1, "within"), (3.15, "behind"), (10.0, "behind")]
)
def test_a_run_is_ahead_within_or_behind(loss, place, make_large_run):
    line = reference.compare(records.read(make_large_run(loss)), "val/loss")
    assert line.startswith(
        f"validation loss {loss:.3f} after 10B tokens: {place} the band of published GPT-2 124M runs"
    )


def test_the_terminal_and_the_page_say_it(make_large_run, capsys):
    folder = make_large_run()
    assert cli.main(["report", str(folder)]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line == reference.compare(records.read(folder), "val/loss")
    page = (folder / "report.html").read_text()
    assert line.replace("validation", "Validation") in page
    assert "gray band" in page


def test_the_end_of_a_run_says_it(make_large_run, caplog, monkeypatch, complete_runs):
    monkeypatch.setattr(report, "_draw_charts", lambda *arguments: ([], []))
    folder = make_large_run(3.0)
    directory = SimpleNamespace(path=folder, dist=SimpleNamespace(is_main=True))
    with caplog.at_level("INFO"):
        LiveReport(directory).finish()  # type: ignore[arg-type]
    assert "validation loss 3.000 after 10B tokens: ahead of the band" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": 355_000_000},
        {"parameters": 129_000_000},
        {"parameters": None},
        {"shard": "mine_val_000000.npy"},
        {"settings": AT_10B | {"data.source": "stdlib"}, "shard": ""},
        {"settings": AT_10B | {"model.block_size": 512}},
        {"settings": AT_10B | {"train.total_batch_size": 1024}},  # 31k tokens: before the first reference
    ],
)
def test_nothing_is_said_of_other_sizes_data_contexts_and_tokens(changes, make_large_run):
    assert reference.compare(records.read(make_large_run(**changes)), "val/loss") == ""


@pytest.mark.parametrize(
    ("shard", "source", "data_set"),
    [
        ("edufineweb_val_000000.npy", None, "fineweb-edu"),
        ("edu_fineweb_val_000000.bin", "pretokenized", "fineweb-edu"),
        ("fineweb_val_000000.bin", "pretokenized", "fineweb"),
        (None, None, None),  # shards without a manifest; that the recipe says fineweb-edu does not count
        (None, "fineweb-edu/sample-10BT", "fineweb-edu"),  # of an earlier release
        ("val_000.npy", "fineweb", "fineweb"),
        ("val_000.npy", None, None),
        ("val_000.npy", "fineweb-edu/sample-10BT", "fineweb-edu"),
    ],
)
def test_the_data_set_is_known_by_its_shards(shard, source, data_set, make_large_run):
    run = records.read(make_large_run(data={"val_shard": shard, "source": source}))
    assert reference.find_data_set(run) == data_set
