"""What a run leaves and shows: records, summary, status, live view, end table, report."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from sfl.data.example import DataNotes
from sfl.errors import DiskError, ProtocolError, UserError
from sfl.metrics import NodeSnapshot
from sfl.metrics.snapshot import ROLES
from sfl.metrics.timeline import Interval, spans_from_json, spans_to_json
from sfl.node.files import write_atomic
from sfl.report import text
from sfl.report.card import Base, model_card
from sfl.report.charts import Bar, Line, Segment, bar_chart, line_chart, ticks
from sfl.report.curve import loss_curve
from sfl.report.final import data_sentence, final_table, print_final
from sfl.report.html import render_report, write_report
from sfl.report.live import LiveView, run_share, status_line, status_picture, worst_first
from sfl.report.markup import Markup, element
from sfl.report.records import NodeRecord, RecordFile, RoundRecord, read_records
from sfl.report.status import LEFT_OUT, DeviceStatus, RunStatus, ServerStatus
from sfl.report.step import StepTimeline, timelines_to_json
from sfl.report.summary import Fault, RunSummary, build_summary, evaluate
from sfl.report.traffic import PURPOSES, by_purpose, traffic_table
from tests.house.report_sample import (
    HOMES,
    sample_records,
    sample_settings,
    sample_snapshot,
    sample_summary,
)

SUMMARY_KEYS = [
    "run_id",
    "model",
    "topology",
    "rounds",
    "faults",
    "devices",
    "edges",
    "cloud",
    "eval_loss_before",
    "eval_loss_after",
    "eval_accuracy_before",
    "eval_accuracy_after",
    "tokens_trained",
    "train_seconds",
    "wall_seconds",
    "reduction_vs_fp32",
    "reduction_vs_fp16",
]
DEVICE_KEYS = [
    "name",
    "cut_layer",
    "tail_layers",
    "rank",
    "num_examples",
    "train_loss",
    "eval_loss",
    "eval_accuracy",
    "bytes_up",
    "bytes_down",
    "bytes_up_raw",
    "bytes_down_raw",
    "peak_rss_bytes",
    "tokens_per_second",
    "bytes_up_by_role",
    "bytes_down_by_role",
    "bytes_up_raw_by_role",
    "bytes_down_raw_by_role",
]
CONFIG = '[run]\nid = "sample"\n'


def device_records(records: list[RoundRecord | NodeRecord]) -> list[RoundRecord]:
    return [record for record in records if isinstance(record, RoundRecord)]


# Files


def test_a_write_is_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_atomic(path, "first é")
    write_atomic(path, b"second", durable=False)
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]
    (path.parent / "folder").mkdir()
    with pytest.raises(DiskError, match=str(path.parent)):
        write_atomic(path.parent / "folder", "a file cannot replace a folder")
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["file.json", "folder"]


def test_records_read_back_even_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = sample_records()
    with RecordFile(path) as file:
        for record in records[:5]:
            file.append(record)
        assert len(path.read_text().splitlines()) == 5  # flushed, line by line
    with RecordFile(path) as file:
        for record in records[5:]:
            file.append(record)
    assert read_records(path) == records
    with path.open("a") as torn:
        torn.write('{"round": 7, "no')
    assert read_records(path) == records


def test_a_line_of_metrics_is_plain_to_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with RecordFile(path) as file:
        for record in sample_records(HOMES[:1], rounds=1):
            file.append(record)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["round"], line["kind"], line["node"]) for line in lines] == [
        (number, kind, name)
        for number in (0, 1)
        for kind, name in (("device", HOMES[0]), ("edge", "edge"), ("cloud", "cloud"))
    ]
    assert lines[0]["train_loss"] is None
    assert lines[3]["eval_loss"] == pytest.approx(lines[3]["eval_loss_sum"] / 800)
    assert lines[3]["eval_accuracy"] == lines[3]["eval_correct"] / 40


def test_a_diverged_loss_is_null_in_every_file(tmp_path: Path) -> None:
    record = dataclasses.replace(
        device_records(sample_records())[-1], train_loss=math.inf, eval_loss_sum=math.nan
    )
    with RecordFile(tmp_path / "metrics.jsonl") as file:
        file.append(record)
    (again,) = device_records(read_records(tmp_path / "metrics.jsonl"))
    assert again.train_loss is None
    assert math.isnan(again.eval_loss_sum)
    summary = build_summary(
        sample_settings(), "r", [record], [], train_seconds=1.0, wall_seconds=1.0
    )
    summary.write(tmp_path / "summary.json")
    assert RunSummary.read(tmp_path / "summary.json").eval_loss_after is None
    render_report(summary, [record], CONFIG)


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1}\n')
    with pytest.raises(UserError, match="line 1 is malformed"):
        read_records(path)


# Summary


def test_the_summary_has_the_keys_that_were_promised(tmp_path: Path) -> None:
    sample_summary().write(tmp_path / "summary.json")
    values = json.loads((tmp_path / "summary.json").read_text())
    for key in SUMMARY_KEYS:
        assert values[key] is not None, key
    for device in values["devices"]:
        for key in DEVICE_KEYS:
            assert device[key] is not None, key
        assert device["bytes_up"] == sum(device["bytes_up_by_role"].values())
        assert device["bytes_down_raw"] == sum(device["bytes_down_raw_by_role"].values())
    assert [node["peak_rss_bytes"] > 0 for node in (*values["edges"], values["cloud"])] == [
        True
    ] * 2
    assert RunSummary.read(tmp_path / "summary.json") == sample_summary()


def test_losses_weigh_by_target_and_accuracies_by_example() -> None:
    snapshot = sample_snapshot("d", "device")
    base = RoundRecord(1, "a", 0.5, 10.0, 10, 1, 2, 30, 4, 50, 2.0, snapshot)
    other = dataclasses.replace(
        base, device="b", eval_loss_sum=90.0, eval_targets=30, eval_correct=6, eval_examples=6
    )
    quality = evaluate([base, other])
    assert quality.loss == pytest.approx(100 / 40)
    assert quality.accuracy == pytest.approx(7 / 8)
    assert quality.devices == ("a", "b")
    assert evaluate([base, dataclasses.replace(other, eval_correct=None)]).accuracy is None
    assert evaluate([base, other], {"b"}).loss == 3.0
    assert evaluate([dataclasses.replace(base, eval_targets=0)]).loss is None
    assert evaluate([]).devices == ()


def test_before_and_after_compare_the_same_devices() -> None:
    records = sample_records()
    late = [
        record
        for record in records
        if not (isinstance(record, RoundRecord) and record.device == HOMES[1] and record.round == 6)
    ]
    summary = build_summary(sample_settings(), "r", late, [], train_seconds=1.0, wall_seconds=2.0)
    stayed = (HOMES[0], HOMES[2])
    assert summary.eval_devices == stayed
    rounds = device_records(records)
    first = evaluate([record for record in rounds if record.round == 0], stayed)
    assert summary.eval_loss_before == first.loss
    assert summary.rounds == 6
    by_name = {device.name: device for device in summary.devices}
    assert by_name[HOMES[1]].rounds == 4  # it missed rounds 3 and 6
    assert by_name[HOMES[1]].eval_loss is None  # that of round 5 is another adapter's


def test_an_adapter_that_nobody_evaluated_has_no_score() -> None:
    records = [
        record
        for record in sample_records()
        if not (isinstance(record, RoundRecord) and record.round == 6)
    ]
    summary = build_summary(
        sample_settings(), "r", records, [], train_seconds=1.0, wall_seconds=2.0, failure="lost"
    )
    assert summary.rounds == 6
    assert summary.eval_loss_after is summary.eval_accuracy_after is None
    assert summary.eval_loss_before is not None
    assert {device.eval_loss for device in summary.devices} == {None}


def test_a_round_that_was_never_evaluated_or_closed_is_not_the_end() -> None:
    records = sample_records()
    torn = [
        dataclasses.replace(
            record, round=7, eval_loss_sum=0.0, eval_targets=0, eval_correct=0, eval_examples=0
        )
        for record in device_records(records)[-3:]
    ]
    whole = build_summary(sample_settings(), "r", records, [], train_seconds=1.0, wall_seconds=2.0)
    summary = build_summary(
        sample_settings(), "r", [*torn, *records], [], train_seconds=1.0, wall_seconds=2.0
    )
    assert summary.rounds == 6
    assert summary.eval_loss_after == whole.eval_loss_after is not None
    assert summary.devices[0].eval_accuracy == whole.devices[0].eval_accuracy
    assert summary.devices[0].rounds == 7


def test_plain_text_has_no_accuracy() -> None:
    summary = sample_summary(text_only=True)
    assert summary.eval_accuracy_before is summary.eval_accuracy_after is None
    assert all(device.eval_accuracy is None for device in summary.devices)
    assert summary.eval_loss_after is not None


def test_reduction_counts_activations_and_gradients_of_training_only() -> None:
    snapshot = dataclasses.replace(
        NodeSnapshot(HOMES[0], "device"),
        bytes=dataclasses.replace(
            NodeSnapshot("x", "device").bytes,
            up={"activation": 100, "evaluation": 1000, "control": 7},
            down={"gradient": 300, "adapter": 5000},
            up_raw={"activation": 400, "evaluation": 4000},
            down_raw={"gradient": 1200, "adapter": 5000},
        ),
    )
    summary = build_summary(
        sample_settings(), "r", [], [snapshot], train_seconds=0.0, wall_seconds=0.0
    )
    assert summary.bytes_in_all == 100 + 1000 + 7 + 300 + 5000
    assert (summary.training_bytes, summary.training_bytes_fp32) == (400, 1600)
    assert (summary.reduction_vs_fp32, summary.reduction_vs_fp16) == (4.0, 2.0)


def test_every_byte_stands_under_one_purpose() -> None:
    assert sorted(role for roles in PURPOSES.values() for role in roles) == sorted(ROLES)
    summary = sample_summary()
    parts = by_purpose(summary)
    assert sum(up + down for up, down in parts.values()) == summary.bytes_in_all > 0
    *rows, total = traffic_table(summary).splitlines()
    assert len(rows) == 1 + len(PURPOSES) and "100.0%" in total
    assert text.size(summary.bytes_in_all) in total


def test_a_restarted_device_keeps_its_bytes_and_tokens() -> None:
    records = sample_records()
    again = sample_snapshot(HOMES[0], "device", 0.1, started_at=5000.0)
    summary = build_summary(
        sample_settings(), "r", records, [again], train_seconds=1.0, wall_seconds=1.0
    )
    before = sample_snapshot(HOMES[0], "device")
    sent = summary.devices[0].traffic.bytes_up
    assert sent == before.bytes.total_up + again.bytes.total_up


def test_a_run_that_failed_before_its_first_round_has_a_summary_too(tmp_path: Path) -> None:
    summary = build_summary(
        sample_settings(),
        "r",
        [],
        [],
        train_seconds=0.0,
        wall_seconds=3.0,
        failure="no device came within 15 s",
        faults=[Fault(0, "edge", "exited with status 1")],
    )
    summary.write(tmp_path / "summary.json")
    assert RunSummary.read(tmp_path / "summary.json") == summary
    assert summary.rounds == 0
    assert summary.eval_loss_after is None
    assert "no device came" in render_report(summary, [], CONFIG)
    assert "no device came" in terminal(final_table(summary))
    loss_curve(summary, [])


@pytest.mark.parametrize("text_only", [False, True])
def test_a_device_that_never_joined_is_not_one_that_did_nothing(
    tmp_path: Path, text_only: bool
) -> None:
    came, absent = HOMES[:2], HOMES[2]
    records = sample_records(came, text_only=text_only)
    silent = [record for record in records if record.snapshot.name != came[1]]
    heard = [sample_snapshot(name, "device") for name in came]  # the second was lost in round 1
    summary = build_summary(
        sample_settings(), "r", silent, heard, train_seconds=1.0, wall_seconds=2.0
    )
    summary.write(tmp_path / "summary.json")
    written = json.loads((tmp_path / "summary.json").read_text())
    joined = {device["name"]: device["joined"] for device in written["devices"]}
    assert joined == {came[0]: True, came[1]: True, absent: False}
    assert RunSummary.read(tmp_path / "summary.json") == summary

    (row,) = [line for line in terminal(final_table(summary)).splitlines() if absent in line]
    assert " ".join(row.split()) == f"{absent} never joined" + " –" * (4 if text_only else 5)
    root = parsed(render_report(summary, silent, CONFIG))
    assert "3 devices · 1 never joined" in "".join(root.itertext())
    rows = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
    headings = next(row for row in rows if row[0] == "device")
    cells = next(row for row in rows if row[0] == absent)
    assert len(cells) == len(headings)
    assert cells[3] == "never joined"
    assert set(cells[4:]) == {"–"}
    # In the table alone: no line of its own, no bar of 0 bytes.
    assert [item for item in root.iter() if absent in (item.text or "")] == [
        cell for cell in root.iter("th") if cell.text == absent
    ]
    assert absent not in loss_curve(summary, silent)


def test_a_summary_of_before_knows_who_joined_by_default(tmp_path: Path) -> None:
    sample_summary().write(tmp_path / "summary.json")
    values = json.loads((tmp_path / "summary.json").read_text())
    for device in values["devices"]:
        del device["joined"]
    (tmp_path / "summary.json").write_text(json.dumps(values))
    assert RunSummary.read(tmp_path / "summary.json") == sample_summary()


# Status and live view


def sample_status() -> RunStatus:
    devices = tuple(
        DeviceStatus.from_snapshot(
            dataclasses.replace(
                sample_snapshot(name, "device", 0.5), loss=0.625, eval_accuracy=0.41, step=12,
                steps=48, tokens_per_second=1234.0,
            ),
            "training",
        )
        for name in HOMES
    )  # fmt: skip
    return RunStatus(
        "r1",
        "training",
        3,
        6,
        devices=devices,
        edges=(ServerStatus.from_snapshot(sample_snapshot("edge", "edge")),),
        cloud=ServerStatus.from_snapshot(sample_snapshot("cloud", "cloud")),
    )


def terminal(renderable: object, width: int = 100) -> str:
    output = io.StringIO()
    Console(file=output, width=width, force_terminal=True, color_system=None).print(renderable)
    return output.getvalue()


def test_the_command_to_copy_is_whole_however_long() -> None:
    summary = dataclasses.replace(sample_summary(), adapter=f"/{'far/' * 40}runs/r/adapter")
    output = io.StringIO()
    print_final(Console(file=output, width=80), summary)
    assert f'--output-dir /{"far/" * 40}runs "..."' in output.getvalue()


def test_status_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert RunStatus.read(path) is None
    status = dataclasses.replace(sample_status(), faults=("lost",), updated_at=3.5)
    status.write(path)
    assert RunStatus.read(path) == status
    broken = dataclasses.replace(status, devices=(DeviceStatus("d", loss=math.nan),))
    broken.write(path)
    again = RunStatus.read(path)
    assert again is not None
    assert again.devices[0].loss is None


def test_the_picture_shows_every_process() -> None:
    for width in (80, 120):
        shown = terminal(status_picture(sample_status(), 33.2, width), width)
        assert "round 3 of 6" in shown
        for part in ("12/48", "0.625", "41.0%", "1,234", "9.24 MB", "10.5 MB", "372 MB", "edge"):
            assert part in shown
        assert max(map(len, shown.splitlines())) <= width


def test_progress_counts_rounds_and_steps() -> None:
    status = sample_status()
    assert run_share(status) == pytest.approx((2 + 0.25) / 6)
    assert run_share(dataclasses.replace(status, phase="aggregating")) == 0.5
    assert run_share(dataclasses.replace(status, round=0)) == 0.0
    assert run_share(dataclasses.replace(status, phase="finished", round=0)) == 1.0
    assert run_share(dataclasses.replace(status, devices=())) == pytest.approx(2 / 6)


def test_without_a_terminal_only_changes_are_told() -> None:
    output = io.StringIO()
    status = sample_status()
    with LiveView(Console(file=output, width=60)) as view:
        for step in range(10):
            moved = [dataclasses.replace(device, step=step) for device in status.devices]
            view.update(dataclasses.replace(status, devices=tuple(moved)))
        view.update(dataclasses.replace(status, faults=("home: \x1b[2Jlost",)))
        view.update(dataclasses.replace(status, phase="aggregating", faults=("home: lost",)))
        view.update(dataclasses.replace(status, round=4))
    lines = output.getvalue().splitlines()
    starts = [
        "round 3/6  training",
        "fault: home:",
        "round 3/6  aggregating",
        "round 4/6  training",
    ]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
    assert "\x1b" not in output.getvalue()


def test_scores_are_said_to_be_of_the_round_they_were_taken_of() -> None:
    status = sample_status()
    assert "after round" not in status_line(status)
    for number, words in ((0, "before training"), (2, "after round 2")):
        devices = tuple(dataclasses.replace(d, eval_round=number) for d in status.devices)
        shown = dataclasses.replace(status, devices=devices)
        assert f"exact match {words} " in status_line(shown)
        assert f"exact match, r{number}" in terminal(status_picture(shown, 1.0, 120), 120)


def test_on_a_terminal_the_view_redraws_itself_and_goes() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100, height=40)
    with LiveView(console, clock=lambda: 1.0) as view:
        view.update(sample_status())
        view.update(dataclasses.replace(sample_status(), round=4))
    assert "round 3 of 6" in output.getvalue()
    assert "round 4 of 6" in output.getvalue()
    assert "\x1b[?25h" in output.getvalue()  # the cursor is back


# End table


@pytest.mark.parametrize("width", [80, 140])
def test_the_end_table_says_it_all(width: int) -> None:
    shown = terminal(final_table(sample_summary(), 'say "on" for $5'), width)
    assert max(map(len, shown.splitlines())) <= width
    flat = " ".join(shown.split())
    for part in (
        "2.0% to 91.3%",
        "2.5% → 95.0%",
        "MB in all over device links: training",
        "2.7x less than fp32",
        "1.3x less than fp16",
        "edge 594 MB",
        "runs/20250301-101500-k3f9/adapter",
        r'sfl generate --run 20250301-101500-k3f9 "say \"on\" for \$5"',
        "round 3, home-birch: lost its link",
    ):
        assert part in flat, part


def test_the_end_table_of_plain_text_shows_the_loss() -> None:
    shown = terminal(final_table(sample_summary(text_only=True)))
    assert "exact match" not in shown
    assert "2.390 → 0.116" in shown


# Report


def parsed(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page)


@pytest.mark.parametrize("text_only", [False, True])
def test_the_report_is_well_formed_and_needs_nothing_else(tmp_path: Path, text_only: bool) -> None:
    summary = sample_summary(text_only=text_only)
    records = sample_records(text_only=text_only)
    write_report(tmp_path / "report.html", summary, records, CONFIG)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    root = parsed(page)
    for found in root.iter():
        assert found.tag not in ("script", "link", "img", "iframe", "object", "image", "use")
        assert not {"src", "href", "srcset", "data", "action"} & set(found.attrib)
        assert not any(name.startswith("on") for name in found.attrib)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    content = "".join(root.itertext())
    for part in (*HOMES, "Held-out loss", "Peak resident memory", "Where the time", "lost its link",
                 'id = "sample"', "Training loss", "Traffic in all"):  # fmt: skip
        assert part in content
    assert ("Exact match" in content) != text_only


def test_the_timeline_of_a_step_shows_work_and_gaps() -> None:
    spans = (
        Interval("forward", "MainThread", 0, 10.0, 10.2),
        Interval("wait", "MainThread", 0, 10.3, 10.5),
        Interval("encode", "link-encoder", 0, 10.2, 10.25),
    )
    edge = (Interval("backward", "compute", 0, 10.3, 10.45),)
    assert list(spans_from_json(spans_to_json(list(spans)))) == list(spans)
    with pytest.raises(ProtocolError):
        spans_from_json('[["dance","x",0,1,2]]')
    timeline = StepTimeline("home-maple", 3, spans, edge)
    root = parsed(render_report(sample_summary(), sample_records(), CONFIG, [timeline]))
    content = "".join(root.itertext())
    assert "home-maple, round 3" in content
    for part in ("device: compute", "device: encode", "edge: compute"):
        assert part in content
    titles = {"".join(title.itertext()) for title in root.iter("title")}
    assert "device: compute, idle: 100 ms" in titles
    assert "edge: compute, backward (micro-batch 0): 150 ms" in titles
    (value,) = json.loads(timelines_to_json([timeline]))
    assert [row["begin"] for row in value["spans"]] == [0.0, 0.3, 0.2, 0.3]


def test_every_point_and_part_has_a_title() -> None:
    root = parsed(render_report(sample_summary(), sample_records(), CONFIG))
    titles = {"".join(title.itertext()) for title in root.iter("title")}
    assert "home-birch, round 4: 90%" not in titles
    assert any(title.startswith("home-maple, round 6: 95%") for title in titles)
    assert any(title.startswith("↑ home-cedar, activation: ") for title in titles)
    assert any(title.startswith("edge, backward: ") for title in titles)
    assert not any(title.startswith("home-birch, round 3") for title in titles)  # it was not there


def test_strings_from_elsewhere_are_escaped_everywhere() -> None:
    attack = "<script>alert(1)</script>&\"'\x00\x1b\ud800"
    summary = dataclasses.replace(
        sample_summary(),
        run_id=attack,
        model=attack,
        failure=attack,
        codec_activation=attack,
        faults=(Fault(1, attack, attack),),
        devices=tuple(
            dataclasses.replace(device, name=attack) for device in sample_summary().devices
        ),
    )
    records = [
        dataclasses.replace(record, device=attack) for record in device_records(sample_records())
    ]
    page = render_report(summary, [*records], attack)
    parsed(page.encode().decode())
    assert "<script" not in page
    parsed(loss_curve(summary, [*records]))
    assert "<script" not in loss_curve(summary, [*records])
    mended = dataclasses.replace(summary, run_id="r", devices=())
    assert "\x1b" not in final_text(mended)


def final_text(summary: RunSummary) -> str:
    output = io.StringIO()
    Console(file=output, width=100).print(final_table(summary, "\x1b[2J"))
    return output.getvalue()


def test_many_devices_and_a_single_round_can_be_drawn() -> None:
    many = tuple(f"device-{number}" for number in range(40))
    parsed(render_report(sample_summary(many), sample_records(many), CONFIG))
    one = HOMES[:1]
    parsed(render_report(sample_summary(one), sample_records(one, rounds=1), CONFIG))


def test_the_loss_curve_is_a_picture_of_its_own() -> None:
    picture = loss_curve(sample_summary(), sample_records())
    root = parsed(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert set(HOMES) <= set(root.itertext())


# Charts and words


def test_an_element_escapes_text_and_keeps_markup() -> None:
    made = element("p", "a < b", Markup("<b>c</b>"), class_="x", aria_label='"')
    assert made == '<p class="x" aria-label="&quot;">a &lt; b<b>c</b></p>'
    assert element("rect", x=1.0) == '<rect x="1"/>'


def test_ticks_are_round_and_cover_the_values() -> None:
    assert ticks(0.0, 0.93, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.0, 3.0, 5) == [0, 1, 2, 3]
    assert ticks(0.0, 594e6, 3) == [0, 2e8, 4e8, 6e8]
    assert ticks(0.0, 0.0, 4)[-1] >= 1
    for high in (1e-9, 0.3, 7, 12345, 9.99e12):
        marks = ticks(0.0, high, 5)
        assert marks[0] == 0
        assert marks[-1] >= high * 0.999
        assert 2 <= len(marks) <= 6


@pytest.mark.parametrize("high", [5e-324, 1e-323, 1e-310, 1e-301, 9e9, 1e15, 1e30])
def test_no_number_of_a_device_is_too_small_or_too_large_to_draw(high: float) -> None:
    own = (Interval("forward", "a", 0, 0.0, min(high, 9e9)),)
    records, summary = sample_records(), sample_summary()
    page = render_report(summary, records, CONFIG, [StepTimeline("mallory", 1, own, ())])
    assert "mallory, round 1" in page
    assert bar_chart("b", [Bar("a", [Segment("s", "c1", high)], "0")], str)
    assert line_chart("l", [Line("a", "c1", [(3, high)])], str)


def test_no_span_is_beyond_what_a_trace_can_hold() -> None:
    with pytest.raises(ProtocolError, match="is not a time"):
        spans_from_json('[["forward","a",0,0.0,1e10]]')
    (span,) = spans_from_json('[["forward","a",0,0.0,9e9]]')
    assert round(span.end * 1e9) < 1 << 63  # OTLP's nanoseconds, and a batch is all devices'


def test_who_is_left_out_for_good_stays_so_in_the_last_status() -> None:
    out = DeviceStatus("a", LEFT_OUT)
    assert [out.at_end(ok).state for ok in (True, False)] == [LEFT_OUT, LEFT_OUT]
    others = [DeviceStatus("b", "training", step=1, steps=2), DeviceStatus("c", "lost")]
    assert [device.name for device in worst_first([*others, out])] == ["a", "c", "b"]


def test_a_card_of_an_earlier_adapter_does_not_pass_the_last_ones_score_off_as_its_own() -> None:
    base, settings = Base("org/model", True), sample_settings()
    summary = dataclasses.replace(sample_summary(), best_round=2)
    assert summary.rounds > 2
    last, best = (model_card(summary, settings, base, best=best) for best in (False, True))
    assert "held-out loss, before and after" in last
    assert "held-out loss, before and after" not in best
    assert "held-out loss, before, and of the run's last adapter" in best
    same = dataclasses.replace(summary, best_round=summary.rounds)
    assert "held-out loss, before and after" in model_card(same, settings, base, best=True)


def test_a_chart_without_values_says_so() -> None:
    assert "No values" in line_chart("l", [Line("a", "c1", [(0, math.nan)])], str)
    assert "No values" in line_chart("l", [], str)
    assert "No values" in bar_chart("b", [Bar("a", [Segment("s", "c1", 0.0)], "0")], str)
    single = line_chart("l", [Line("a", "c1", [(3, 1.0)])], str)
    assert "NaN" not in single
    assert "nan" not in single


def test_sizes_times_and_shares_read_well() -> None:
    shown = [text.size(value) for value in (0, 999, 1000, 99_949, 999_600, 1_234_567, 5e15)]
    assert shown == ["0 B", "999 B", "1.00 kB", "99.9 kB", "1.00 MB", "1.23 MB", "5000 TB"]
    shown = [text.duration(value) for value in (0.0421, 8.44, 59.99, 185, 7620)]
    assert shown == ["42 ms", "8.4 s", "1 min 00 s", "3 min 05 s", "2 h 07 min"]
    shown = [text.percent(share) for share in (0, 0.8125, 0.9996, 1.0, None)]
    assert shown == ["0%", "81.2%", "99.9%", "100%", "–"]
    assert text.against(1.0, "fp32") == "about as much as fp32"
    assert text.against(0.5, "fp16") == "2.0x more than fp16"
    assert [text.on_axis(text.size)(value) for value in (0, 2.5e6, 2e7)] == ["0", "2.5 MB", "20 MB"]


def test_what_the_data_came_to_is_said() -> None:
    notes = {
        "home-maple": DataNotes(2, 1, 3, 1000, 900),
        "home-birch": DataNotes(0, 0, 0, 200, 200),
    }
    settings = sample_settings()
    summary = build_summary(
        settings, "sample", sample_records(), [], train_seconds=1, wall_seconds=1, data=notes
    )
    sentence = data_sentence(summary)
    assert sentence.startswith("1,100 of 1,200 tokens are in training examples (91.7%), 2 ex")
    assert "3 held-out examples are also trained on" in sentence
    again = RunSummary.from_dict(json.loads(json.dumps(summary.to_dict())))
    assert again.devices[0].data == notes[HOMES[0]]
    assert DataNotes() in {device.data for device in again.devices}
