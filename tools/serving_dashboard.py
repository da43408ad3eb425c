"""The dashboard of edges and devices that answer with a model."""

from __future__ import annotations

from tools.panels import (
    DEVICES,
    EDGE,
    OF_EDGE,
    ON_DEVICE,
    RATE,
    RUN,
    Dashboard,
    Panel,
    Query,
    number,
    panel,
)


def _quantiles(title: str, metric: str, note: str = "") -> Panel:
    """Half, and 95%, of what devices timed."""
    queries = tuple(
        Query(
            f"histogram_quantile({share}, sum by (device, le) "
            f"(rate({metric}_bucket{{{ON_DEVICE}}}{RATE})))",
            f"{{{{device}}}} {name}",
        )
        for share, name in (("0.5", "half"), ("0.95", "95%"))
    )
    return Panel(title, queries, "s", note=note)


ANSWERS = Dashboard(
    "sfl-serving",
    "sfl: serving",
    (RUN, EDGE, DEVICES),
    (
        number("Answer tokens a second", f"sum(rate(sfl_serve_answer_tokens_total{{{ON_DEVICE}}}"
                f"{RATE}))"),
        number(
            "First token, 95%",
            f"histogram_quantile(0.95, sum by (le) "
            f"(rate(sfl_serve_first_token_seconds_bucket{{{ON_DEVICE}}}{RATE})))", "s",
        ),
        number("Devices connected", f"sum(sfl_connected_nodes{{{OF_EDGE}}})"),
        number("Conversations", f"sum(sfl_serve_conversations{{{OF_EDGE}}})"),
        number(
            "Room in use",
            f"sum(sfl_serve_kv_bytes{{{OF_EDGE}}}) / sum(sfl_serve_kv_budget_bytes{{{OF_EDGE}}})",
            "percentunit",
        ),
        number("Answers that failed", f'sum(sfl_serve_answers_total{{{ON_DEVICE}, end="failed"}})'),
        _quantiles(
            "Time to the first token", "sfl_serve_first_token_seconds",
            "SflFirstTokenSlow fires where 95% of five minutes are above 5 s.",
        ),
        _quantiles("Time between tokens", "sfl_serve_between_tokens_seconds"),
        Panel(
            "Tokens a second",
            (
                Query(f"sum by (device) (rate(sfl_serve_answer_tokens_total{{{ON_DEVICE}}}{RATE}))",
                      "{{device}} answers"),
                Query(f"sum by (device) (rate(sfl_serve_prompt_tokens_total{{{ON_DEVICE}}}{RATE}))",
                      "{{device}} prompts"),
            ),
        ),
        panel(
            "Answers by how they ended",
            f"sum by (end) (rate(sfl_serve_answers_total{{{ON_DEVICE}}}{RATE}))", "{{end}}",
            stacked=True,
        ),
        panel(
            "Tokens a round trip",
            f"sum by (device) (rate(sfl_serve_answer_tokens_total{{{ON_DEVICE}}}{RATE})) "
            f"/ sum by (device) (rate(sfl_serve_round_trips_total{{{ON_DEVICE}}}{RATE}))",
            "{{device}}",
            note="1 without drafts.",
        ),
        panel(
            "Share of drafted tokens that were accepted",
            f"sum by (device) (rate(sfl_serve_accepted_tokens_total{{{ON_DEVICE}}}{RATE})) "
            f"/ sum by (device) (rate(sfl_serve_drafted_tokens_total{{{ON_DEVICE}}}{RATE}))",
            "{{device}}", "percentunit",
            note="Empty where nothing is drafted.",
        ),
        panel(
            "Conversations in a batch, mean",
            f"sum by (instance) (rate(sfl_serve_batch_size_sum{{{OF_EDGE}}}{RATE})) "
            f"/ sum by (instance) (rate(sfl_serve_batch_size_count{{{OF_EDGE}}}{RATE}))",
            "{{instance}}",
        ),
        panel(
            "Conversations", f"sum by (state) (sfl_serve_conversations{{{OF_EDGE}}})", "{{state}}",
            stacked=True,
        ),
        Panel(
            "Keys and values",
            (
                Query(f"sfl_serve_kv_bytes{{{OF_EDGE}}}", "in use {{instance}}"),
                Query(f"sfl_serve_kv_budget_bytes{{{OF_EDGE}}}", "budget {{instance}}"),
            ),
            "decbytes",
            note="A full budget is as it should be: idle conversations keep their pages until "
            "others need them. SflKvBudgetFull fires where conversations are turned away.",
        ),
        Panel(
            "Keys and values on devices",
            (
                Query(f"sfl_serve_kv_bytes{{{ON_DEVICE}}}", "in use {{device}}"),
                Query(f"sfl_serve_kv_budget_bytes{{{ON_DEVICE}}}", "budget {{device}}"),
            ),
            "decbytes",
        ),
        panel(
            "Turned away, a second",
            f"sum by (reason) (rate(sfl_serve_refusals_total{{{OF_EDGE}}}{RATE}))", "{{reason}}",
        ),
        panel(
            "Gave up their room, a second",
            f"sum by (way) (rate(sfl_serve_evictions_total{{{OF_EDGE}}}{RATE}))", "{{way}}",
        ),
        panel(
            "Bytes a second",
            f"sum by (device, direction) (rate(sfl_serve_wire_bytes_total{{{ON_DEVICE}}}{RATE}))",
            "{{device}} {{direction}}", "Bps", stacked=True,
        ),
        panel(
            "Connected to its edge", f"sfl_serve_edge_connected{{{ON_DEVICE}}}", "{{device}}",
            note="SflServingEdgeLost fires at 0, where the device itself is scraped.",
        ),
    ),
)  # fmt: skip
