"""The error of the estimates on measured runs."""

import csv
import json

import pytest

from benchmarks import fit_planning, plan_published
from gpt2lab import cli
from gpt2lab.planning import speed, validate
from gpt2lab.planning.speed import Stack
from gpt2lab.system import gpus
from tests.planning.helpers import change, plan_as_json

COLUMNS = (
    "parameters,n_layer,n_embd,seq_len,gpu,gpus,micro_batch_size,grad_accum,precision,sharding,"
    "activation_checkpointing,tokens_per_second"
)


@pytest.fixture
def table():
    return gpus.load()


@pytest.fixture
def llm_foundry(shared_data):
    return shared_data / "throughput" / "llm_foundry.csv"


def write_table(file, *factors):
    """Runs that are slower or faster than the estimate by known factors."""
    lines = [COLUMNS]
    for factor in factors:
        work = change(
            parameters=124_525_056, matmul_parameters=123_738_624, vocab_size=50368, sharding="full", gather_bytes=2
        )
        rate = speed.tokens_per_second(work, gpus.load()["h100-80gb"], Stack()).estimate / factor
        lines.append(f"124525056,12,768,1024,h100_80gb,8,16,4,amp_bf16,FULL_SHARD,False,{rate}")
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def test_errors_are_fractions_of_the_measured_speed(tmp_path, capsys):
    file = write_table(tmp_path / "runs.csv", 1.1, 0.8, 1.3)
    summary = plan_as_json(capsys, "--validate", file)
    assert set(summary) == {"median_error", "p90_error", "rows"}
    assert summary["rows"] == 3
    assert summary["median_error"] == pytest.approx(0.2)
    assert summary["p90_error"] == pytest.approx(0.28)


def test_a_single_row_is_enough(tmp_path, capsys):
    assert plan_as_json(capsys, "--validate", write_table(tmp_path / "runs.csv", 1.1))["p90_error"] == pytest.approx(
        0.1
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_layer", "layers", "n_layer"),
        ("amp_bf16", "int4", "int4"),
        ("h100_80gb", "abacus", "abacus"),
        ("FULL_SHARD", "SOMETIMES", "SOMETIMES"),
        (",16,4,", ",0,4,", "micro_batch_size"),
    ],
)
def test_a_row_that_is_not_valid_is_named(tmp_path, capsys, old, new, message):
    file = write_table(tmp_path / "runs.csv", 1.0)
    text = (tmp_path / "runs.csv").read_text().replace(old, new)
    (tmp_path / "runs.csv").write_text(text)
    assert cli.main(["plan", "--validate", file]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "row 1" in error
    assert error.count("\n") == 1


def test_columns_that_are_not_separated_by_commas(tmp_path, capsys):
    (tmp_path / "runs.csv").write_text("gpu;n_layer\nh100;12\n")
    assert cli.main(["plan", "--validate", str(tmp_path / "runs.csv")]) == 2
    assert "not separated by commas" in capsys.readouterr().err


def test_a_missing_or_empty_table_is_an_error(tmp_path, capsys):
    (tmp_path / "empty.csv").write_text(COLUMNS + "\n")
    for name in ("missing.csv", "empty.csv"):
        assert cli.main(["plan", "--validate", str(tmp_path / name)]) == 2
        assert name in capsys.readouterr().err


def test_llm_foundry_with_the_shipped_constants(llm_foundry, capsys):
    summary = plan_as_json(capsys, "--validate", str(llm_foundry))
    assert summary["rows"] == 120
    assert summary["median_error"] <= 0.06
    assert summary["p90_error"] <= 0.15


def test_shipped_constants_are_those_that_the_script_fits(llm_foundry, table):
    fitted = fit_planning.fit(validate.read(llm_foundry, table))
    assert fitted.link == pytest.approx(speed.SHIPPED.link, rel=0.01)
    for generation in ("ampere", "hopper"):
        assert fitted.of(generation) == pytest.approx(speed.SHIPPED.of(generation), rel=0.01)


def test_constants_from_a_half_predict_the_other_half(llm_foundry, table):
    rows = validate.read(llm_foundry, table)
    summaries = [fit_planning.check_halves(rows, seed)[1] for seed in range(3)]
    assert max(summary["median_error"] for summary in summaries) <= 0.06
    assert max(summary["p90_error"] for summary in summaries) <= 0.15


def test_no_micro_batch_that_ran_is_called_too_big(llm_foundry, table):
    assert validate.count_too_big(validate.read(llm_foundry, table)) == 0


def test_published_runs_within_a_factor_of_their_own(shared_data, table):
    rows = list(csv.DictReader((shared_data / "throughput" / "published_runs.csv").open()))
    ratios = [plan_published.ratio(row, table) for row in rows]
    assert sum(1 / 1.4 <= ratio <= 1.4 for ratio in ratios) >= 0.8 * len(rows)


@pytest.mark.parametrize(
    ("arguments", "hours", "cost", "tokens_per_second"),
    [
        ("--config minigpt --gpu a100-40gb --gpus 6 --price-per-hour 7.80", 3.75, 30, None),
        ("--config minillm --gpu a100-80gb --gpus 8", 3.5, None, 942_000),
    ],
)
def test_claims_of_the_original_projects_are_in_the_range(capsys, arguments, hours, cost, tokens_per_second):
    (each,) = plan_as_json(capsys, *arguments.split())["plans"]
    for key, claim in (("hours", hours), ("cost", cost), ("tokens_per_second", tokens_per_second)):
        if claim is not None:
            low, high = each[key]["low"], each[key]["high"]
            assert low <= claim <= high
            assert high / low <= 1.5 + 1e-9


def test_json_on_standard_output_is_one_object(tmp_path, capsys):
    assert cli.main(["plan", "--validate", write_table(tmp_path / "x.csv", 1.0), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 1
