"""Render benchmark records as Markdown tables, one function per table."""

from __future__ import annotations

from itertools import groupby

NAMES = {
    "anchor": "**Qanchor**, the task's own question",
    "zero_shot": "**Qanchor**, label-free ranking",
    "anchor_no_query": "**Qanchor**, no question",
    "anchor_untrained": "**Qanchor**, untrained",
    "lightgbm": "LightGBM on RFM + text counts",
    "features": "Qanchor's own features of a user, logistic",
    "features_lightgbm": "Qanchor's own features of a user, LightGBM",
    "rfm_svd": "RFM + SVD-64 of text counts",
    "rfm_svd_minilm": "RFM + SVD-64 of text counts + SVD-64 of mean MiniLM",
    "minilm_rfm": "mean MiniLM + RFM",
    "rfm": "RFM",
    "counts": "text counts",
    "minilm": "mean MiniLM",
    "backbone_text": "SmolLM2 on the events as text, last token",
    "hidden_alone": "Qanchor, user hidden from the language model",
    "shuffled": "Qanchor, language model reads another user",
    "skip_alone": "Qanchor, gated skip alone",
    "llm_alone": "Qanchor, language model alone",
    "llm_alone_shuffled": "Qanchor, language model alone, reads another user",
    "earlier_logistic": "logistic regression fitted at earlier cut-offs, label-free",
    "earlier_lightgbm": "LightGBM fitted at earlier cut-offs, label-free",
}
OURS = ("anchor", "anchor_no_query", "anchor_untrained")
# Qanchor without a part, or with another user's: shown beside it, never as a baseline
CONTROLS = ("hidden_alone", "shuffled", "skip_alone", "llm_alone", "llm_alone_shuffled")
EARLIER = ("earlier_logistic", "earlier_lightgbm")  # label-free baselines
STAGES = {
    "slots"
}  # a stage of the model, shown by the information ladder; neither a baseline nor an embedding
STRONGEST = 2  # baselines of each data set in the summary
ASKED = {
    "itself": "the question about it",
    "nothing": "no question",
    "generic": "a generic question",
}
OTHERS = {
    "none": "no question",
    "generic": "a generic question",
    "wrong": "another task's question",
}
WAYS = {
    "right": "the task's own question",
    "vague": "a vague question",
    "vague_seek": "a vague question, `--init search`",
}
CURVES = {
    "vectors": ("virtual token", "{}, 100 steps"),
    "steps": ("step", "6 virtual tokens, at most {}"),
    "untrained": ("step", "no pre-training, {}"),
    "lora": ("step", "LoRA on the same labels, {}"),
}
LOOKS = {
    "weight": "attention",
    "per_token": "attention per prefix token",
    "deletion_effect": "deletion",
    "gradient": "gradient x input",
}
ARMS = {
    "rfm": "RFM, trained on the label",
    "lightgbm": "LightGBM on RFM + text counts, trained on the label",
    "anchor": "**Qanchor**, probe trained on the label",
    "zero_shot": "**Qanchor**, label-free",
}
BEST = 0.2  # the share of selected users that the replay table shows
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
KINDS = {"bfloat16": "bf16", "float32": "fp32"}  # dtype of the measured matrix products
FEW = 4  # up to this many tasks get a column each


def told(*records: dict) -> str:
    """Return the commands, commit and machine of the records, one line for those that share commit
    and machine.
    """
    made: dict = {}
    for record in records:
        machine = record["machine"]
        threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
        products = machine.get("products", "bfloat16")  # older records lack it
        kind = f"{KINDS[products]} matrix products"
        if record.get("dtype", products) != products:
            kind += f"; model in {record['dtype']}"
        made.setdefault(
            (record["commit"], machine["gpu"] or f"{machine['processor']}, {threads}", kind), []
        ).append(record)
    lines = []
    for (commit, on, kind), some in made.items():
        rates = sorted({record["machine"]["matmul_tflops"] for record in some})
        names = "`, `".join(record["bench"] for record in some)
        rate = " to ".join(str(end) for end in dict.fromkeys((rates[0], rates[-1])))
        lines.append(
            f"`python -m tests.benchmarks {names}`, commit {commit}, {on}, {rate} TFLOP/s ({kind})."
        )
    return "\n".join(lines)


def tasks_table(record: dict) -> str:
    """Return the methods of a `tasks` record, best first; a record of few tasks gets a column for
    each task.
    """
    average, minus, found = (
        record["average"],
        record.get("anchor_minus", {}),
        record.get("recovered"),
    )
    tasks = list(dict.fromkeys(row["task"] for row in record["tasks"]))
    each = {(row["task"], row["method"]): row["auc"] for row in record["tasks"]}
    alone = tasks if 1 < len(tasks) <= FEW else []
    rows = []
    for name in _methods(record):
        row = average[name]
        cells = [
            NAMES.get(name, name),
            short(row["auc"]),
            f"{short(row['low'])} to {short(row['high'])}",
            short(row["ks"]),
        ]
        cells += [short(each[task, name]) for task in alone] + (
            [short(found[name])] if found else []
        )
        rows.append([*cells, spanned(minus[name])] if name in minus else [*cells, ""])
    head = [f"average of {_number(len(tasks), 'task')}", "AUC", "95 % CI", "KS", *alone]
    return table([*head, *(["recovered"] if found else []), "Qanchor minus this (95 % CI)"], rows)


def summary_table(records: dict[str, dict]) -> str:
    """Return one table of several `tasks` records: Qanchor, its controls and the strongest
    baselines of each data set.

    A data set whose label-free ranking covers only some of its tasks gets a second column with the
    average of those tasks, so that the label-free rows are compared on equal tasks. Models fitted
    at earlier cut-offs are label-free rows, too.
    """
    shown = ("anchor", *CONTROLS, *OURS[1:])
    methods = [
        name for name in shown if any(name in record["average"] for record in records.values())
    ]
    for record in records.values():
        baselines = [name for name in _methods(record) if name not in OURS]
        methods += [name for name in baselines[:STRONGEST] if name not in methods]
    head, columns = ["average AUC (95 % CI)"], []
    label_free: dict[str, list[str]] = {name: [] for name in ("zero_shot", *EARLIER)}
    for data, record in records.items():
        tasks = list(dict.fromkeys(row["task"] for row in record["tasks"]))
        ranked = [task for task in record["zero_shot"] if task != "average"]
        head.append(f"{data}, {_number(len(tasks), 'task')}")
        columns.append(
            {name: f"{short(row['auc'])} ({_span(row)})" for name, row in record["average"].items()}
        )
        if len(ranked) < len(tasks):
            for cells in label_free.values():
                cells.append("")
            head.append(f"{data}, {_number(len(ranked), 'future task')}")
            columns.append(
                {name: short(_mean_auc(record, name, ranked)) for name in record["average"]}
            )
        spans = record.get("zero_shot_intervals", {}).get("average")
        average = short(record["zero_shot"]["average"])
        label_free["zero_shot"].append(f"{average} ({_span(spans)})" if spans else average)
        others = record.get("zero_shot_others", {})
        for name in EARLIER:
            label_free[name].append(_valued(others[name]["average"]) if name in others else "")
    rows = [
        [NAMES.get(name, name), *(column.get(name, "") for column in columns)] for name in methods
    ]
    rows[1:1] = [[NAMES[name], *cells] for name, cells in label_free.items() if any(cells)]
    return table(head, rows)


def joined(record: dict, controls: dict) -> dict:
    """Return a `tasks` record with the methods that only the `controls` record of its run has."""
    new = {name: row for name, row in controls["average"].items() if name not in record["average"]}
    rows = [row for row in controls["tasks"] if row["method"] in new]
    return record | {
        "average": record["average"] | new,
        "tasks": record["tasks"] + rows,
        "zero_shot_others": controls["zero_shot_others"],
    }


def controls_table(record: dict) -> str:
    """Return what is left without a part of the model, or with another user's, by a probe and
    label-free; below them the baselines of a `controls` record.
    """
    zero = {"anchor": record["zero_shot_intervals"]} | record["zero_shot_others"]
    probed, probe_minus = record["average"], record["anchor_minus"]
    rows = []
    baselines = [name for name in probed if name not in ("anchor", *CONTROLS)]
    for method in ("anchor", *CONTROLS, *baselines, *EARLIER):
        if method not in probed and method not in zero:
            continue
        minus = record["zero_shot_minus"]
        row = [
            NAMES[method],
            _valued(probed[method]) if method in probed else "",
            spanned(probe_minus[method]) if method in probe_minus else "",
            _valued(zero[method]["average"]) if method in zero else "",
            spanned(minus[method]) if method in minus else "",
        ]
        rows.append(row)
    tasks = len({row["task"] for row in record["tasks"]})
    ranked = len(record["zero_shot"]) - 1
    head = [
        "average",
        f"probe, {_number(tasks, 'task')}: AUC (95 % CI)",
        "Qanchor minus this (95 % CI)",
        f"label-free, {_number(ranked, 'task')}: AUC (95 % CI)",
        "Qanchor minus this (95 % CI)",
    ]
    return table(head, rows)


def _methods(record: dict) -> list[str]:
    """Return the methods of a `tasks` record, best first, without controls; methods without a
    display name are kept under their own.
    """
    shown = set(record["average"]) - STAGES - set(CONTROLS)
    return sorted(shown, key=lambda name: -record["average"][name]["auc"])


def _mean_auc(record: dict, method: str, tasks: list[str]) -> float:
    values = [
        row["auc"] for row in record["tasks"] if row["method"] == method and row["task"] in tasks
    ]
    return sum(values) / len(values)


def query_table(record: dict) -> str:
    """Return the AUC under other questions than the right one; older records have no intervals,
    some no label-free ranking.
    """
    asked, minus, spans = (
        record["query"],
        record.get("query_minus", {}),
        record.get("query_intervals", {}),
    )
    worded, right = asked["paraphrases"], asked["right"]
    least = min(range(len(worded)), key=worded.__getitem__)

    def row(name: str, kind: str) -> list[str]:
        above = spanned(minus[kind]) if kind in minus else short(right - asked[kind])
        return [name, short(asked[kind]), _span(spans.get(kind)), above]

    above = spanned(minus["paraphrases"][least]) if minus else short(right - worded[least])
    rows = [["the task's own question", short(right), _span(spans.get("right")), ""]]
    reworded = f"{short(min(worded))} to {short(max(worded))}"
    rows.append([f"{_number(len(worded), 'paraphrase')} of it", reworded, "", f"at most {above}"])
    rows += [row(name, kind) for kind, name in OTHERS.items()]
    if zero := record.get("zero_shot"):
        name = f"the task's own question, label-free ranking ({_number(len(zero) - 1, 'task')})"
        rows.append(
            [
                name,
                short(zero["average"]),
                _span(record.get("zero_shot_intervals", {}).get("average")),
                "",
            ]
        )
    return table(["question", "AUC", "95 % CI", "own question minus this (95 % CI)"], rows)


def fairness_table(record: dict) -> str:
    """Return what a probe reads of attributes by question, and the gap in selection rates between
    attribute groups.
    """
    rows = {(row["source"], row["attribute"]): row for row in record["rows"]}
    traits = [
        name
        for name in dict.fromkeys(row["attribute"] for row in record["rows"])
        if name != "average"
    ]
    lines, gaps = [], []
    for source in dict.fromkeys(row["source"] for row in record["rows"]):
        mean = rows[source, "average"]
        asked = ASKED.get(source) or (
            f"the question about {source}"
            if source in record["asked"]
            else NAMES.get(source, source)
        )
        cells = [short(rows[source, trait]["auc"]) for trait in traits]
        lines.append(
            [
                asked,
                *cells,
                short(mean["auc"]),
                f"{short(mean['auc_low'])} to {short(mean['auc_high'])}",
            ]
        )
    for task, arm in dict.fromkeys((row["task"], row["arm"]) for row in record["groups"]):
        mine = {
            row["attribute"]: row
            for row in record["groups"]
            if (row["task"], row["arm"]) == (task, arm)
        }
        gaps.append(
            [
                task,
                {"anchor": "Qanchor", "zero_shot": "Qanchor, label-free"}.get(
                    arm, NAMES.get(arm, arm)
                ),
            ]
        )
        gaps[-1] += [_gap(mine[trait]["gap"]["selected"]) for trait in traits]
    read = table(["AUC of a probe for", *traits, "average", "95 % CI"], lines)
    return f"{read}\n\n{table(['top 20 % for', 'scored by', *traits], gaps)}" if gaps else read


def prompts_table(record: dict) -> str:
    """Return soft prompts beside a probe on the same labels, by initial question; the last row is
    the paper's.
    """
    lines = []
    for way, row in record["average"].items():
        cells = [
            f"{short(row['before'][name])} to {short(row['after'][name])}"
            for name in ("ks", "silhouette")
        ]
        gain = _gap([row["gain"][name] for name in ("auc", "low", "high")])
        lines.append(
            [WAYS[way], short(row["before"]["auc"]), short(row["after"]["auc"]), gain, *cells]
        )
    lines.append(["the paper, on its own tasks", ".8104", ".8225", "+.012", "+.022", ""])
    return table(
        ["question", "AUC before", "AUC after", "gain (95 % CI)", "KS", "silhouette"], lines
    )


def curves_table(record: dict) -> str:
    """Return the gain of tuning a vague question by virtual tokens, by steps, without pre-training,
    and with LoRA instead.
    """
    paper, lines = record["paper"], []
    for row in record["average"]:
        gain = _gap([row["gain"][name] for name in ("auc", "low", "high")])
        theirs = paper.get(row["curve"], {}).get(str(row["x"]))
        noun, name = CURVES[row["curve"]]
        name = name.format(f"{row['x']} {noun}{'s' * (row['x'] != 1)}")
        lines.append(
            [
                name,
                short(row["before"]),
                short(row["after"]),
                gain,
                short(theirs, 4) if theirs else "",
            ]
        )
    head = [
        f"average of {_number(len(record['tasks']), 'task')}",
        "AUC before",
        "AUC after",
        "gain (95 % CI)",
        "the paper's AUC",
    ]
    return table(head, lines)


def fitted_table(record: dict) -> str:
    """Return what `fit` reaches: its ranking without labels beside parts of it and two that need no
    model, a linear probe on its embeddings, and what the backtest's chances are worth.
    """
    columns = ("label_free", "without_associations", "associations", "prior", "persistence")
    columns += ("frequency", "recency", "probe", "grade", "chance_error")
    rows = [*record["rows"], {"query": "**average of those answered**"} | record["average"]]
    lines = [
        [row["query"], *(short(row[name]) if row.get(name) else "none" for name in columns)]
        for row in rows
    ]
    head = ["question", "ranking, no labels", "without associations", "associations alone"]
    head += ["prior alone", "persistence", "all events", "recency", "probe", "grade"]
    head += ["error of the chance"]
    refused = record["refused"]
    return (
        f"{record['users']:,} users, {record['events']:,} events, {record['concepts']} concepts,"
        f" {record['seconds']:.0f} s. Refused: {refused['unanswerable']} of"
        f" {refused['of_unanswerable']} questions that no data of this kind can answer,"
        f" {refused['answerable']} of {refused['of_answerable']} new wordings about its own"
        f" concepts.\n\n{table(head, lines)}"
    )


def concepts_table(record: dict) -> str:
    """Return how concepts are ranked for users in no training step, by what was held out."""
    names = {
        "taught": "taught concept, taught wording",
        "wording": "taught concept, new wording",
        "concept": "concept never taught",
    }
    lines = [
        [names[row["split"]], *(short(row[name]) for name in ("auc", "persistence", "polarity"))]
        for row in record["splits"]
    ]
    return table(["questions", "AUC", "persistence", "sense right"], lines)


BODIES = {
    "pointing": "A: pointing, no language model",
    "same_budget": "A, trained as B, C and D are",
    "language_model": "B: language model (SmolLM2), last 8 layers",
    "random_weights": "C: the same shape, random weights",
    "one_layer": "D: one attention layer",
}


def reading_table(record: dict) -> str:
    """Return what the language model adds to a ranking, beside the controls of its reading."""
    columns = ("label_free", "prior", "alone", "tokens_only", "tokens_shuffled", "shuffled")
    lines = []
    concepts = []
    for name, row in record["rows"].items():
        minus = record["minus"].get(name)
        cells = [short(row[column]) for column in (*columns, "probe")]
        cells += [spanned(minus[kind]) if minus else "" for kind in ("label_free", "alone")]
        lines.append([BODIES[name], *cells, f"{row['seconds']:,.0f}"])
        splits = [row["concepts"].get(split) for split in ("taught", "wording", "concept")]
        cells = [
            f"{short(part['auc'])} ({short(part['prior'])})" if part else "none" for part in splits
        ]
        concepts.append([BODIES[name], *cells])
    head = ["body", "ranking, no labels", "F: its prior alone", "body alone"]
    head += ["the same, tokens only", "tokens of another user", "E: all of another user", "probe"]
    head += ["B's ranking minus this", "B's body minus this", "training, s"]
    of_concepts = [
        "body (prior alone in brackets)",
        "taught",
        "new wording",
        "concept never taught",
    ]
    return f"{table(head, lines)}\n\n{table(of_concepts, concepts)}"


def attention_table(record: dict) -> str:
    """Return how often each measure ranks a carrier of the task first, under the question and under
    a tuned prompt.
    """
    lines = []
    named = record["named"]
    for name, said in LOOKS.items():
        if name not in named:
            continue
        parts = [side[name] for side in (record["named"], record["tuned"]["named"])]
        columns = [[part[kind]["first"] for part in parts] for kind in ("as_it_is", "against")]
        lines.append(
            [
                said,
                *(
                    ", ".join(map(_whole, two))
                    for two in (*columns, [part["carriers"] for part in parts])
                ),
            ]
        )
    lines.append(["random choice", *[_whole(record["chance"])] * 3])
    head = [
        "question, tuned prompt",
        "carrier ranked first",
        "the same, minus the mean over tasks",
        "share on carriers",
    ]
    agreements = [side["agreement"]["weight"] for side in (record, record["tuned"])]
    text = (
        "Rank correlation of attention and deletion within a user:"
        f" {short(agreements[0])} under the question, {short(agreements[1])} under the tuned prompt."
    )
    if "held_out" in record:
        held_out = record["held_out"]
        saliency, raw = held_out["saliency"], held_out["raw_attention"]
        text += (
            f" For {held_out['questions']} questions about concepts that were never taught, with"
            f" how much the score changes: {short(saliency['agreement'])}, and both name the same"
            f" modality first in {_whole(saliency['same_first'])}; with raw attention weights"
            f" {short(raw['agreement'])} and {_whole(raw['same_first'])}."
        )
    return f"{table(head, lines)}\n\n{text}"


def replay_table(record: dict) -> str:
    """Return the outcome of the top 20 % by each score, beside that of all users."""
    rows = [["all users", f"{record['users']:,}", _percent(record["rate"]), "1.00", ""]]
    first = record["rows"][0]["arm"]
    for row in record["rows"]:
        if row["top"] == BEST:
            lift = f"{row['lift']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            more = (
                f"{row['minus']:+.2f} ({row['minus_low']:.2f} to {row['minus_high']:.2f})"
                if row["arm"] != first
                else ""
            )
            rows.append(
                [
                    ARMS.get(row["arm"], row["arm"]),
                    f"{row['users']:,}",
                    _percent(row["rate"]),
                    lift,
                    more,
                ]
            )
    head = [
        "top 20 % by",
        "users",
        f"`{record['task']}`",
        "lift (95 % CI)",
        f"minus {NAMES.get(first, first)} (95 % CI)",
    ]
    return table(head, rows)


def ablations_table(record: dict) -> str:
    """Return the variants of a preset beside the full one, and the change that the paper reports
    for the same variant.
    """
    rows = []
    for place, row in enumerate(record["rows"]):
        less = _gap([row["minus"][name] for name in ("auc", "low", "high")]) if place else ""
        paper = (
            f"{'+' * (row['paper'] > 0)}{short(row['paper'])}" if row["paper"] is not None else ""
        )
        rows.append([row["variant"], short(row["auc"]), short(row["wrong"]), less, paper])
    return table(
        ["variant", "own question", "another task's", "change (95 % CI)", "change in the paper"],
        rows,
    )


def useru_table(record: dict) -> str:
    """Return time and peak memory of making pairs, by number of events."""
    rows = []
    for row in record["rows"]:
        numbers = [
            f"{row['scale']}",
            f"{row['events']:,}",
            f"{row['seconds']:.1f}",
            f"{round(row['events_per_s'], -3):,.0f}",
        ]
        rows.append([*numbers, f"{row['peak_gb']:.2f} GB"])
    made = table(
        ["copies of the Complete Journey", "events", "seconds", "events per second", "peak memory"],
        rows,
    )
    power = record["growth_exponent"]
    grown = (
        f"Time grows with the number of events to the power of {power:.3f} (goal: at most 1.05). "
        if power
        else ""
    )
    return f"{made}\n\n{grown}Goals on 2 cores: one copy within 30 s, 20 copies within 2 GB."


def speed_table(records: dict[str, dict]) -> str:
    """Return the performance records in one table, each beside its goal."""
    rows = [
        [f"`{name}`", *row]
        for name, made in SPEED.items()
        if name in records
        for row in made(records[name])
    ]
    return table(["benchmark", "what", "measured", "goal"], rows)


def _cache(record: dict) -> list[list[str]]:
    found = []
    for (slots, tokens), some in groupby(
        record["rows"], key=lambda row: (row["prefix"], row["query"])
    ):
        rows = list(some)
        sizes = f"{slots} prefix tokens, {tokens} tokens per query"
        asked = (
            f"{' / '.join(str(row['queries']) for row in rows)} queries on cached prefixes, "
            "speed-up over recomputing"
        )
        what = f"the same with {sizes}" if found else f"{asked}; {sizes}"
        bound = f"{' / '.join(short(row['of_bound'], 2) for row in rows)} of the FLOP bound"
        found.append(
            [
                what,
                f"{' / '.join(_times(row['speedup']) for row in rows)} times; {bound}",
                ".85 of the bound, .80 at 32 queries",
            ]
        )
    return found


def _ask(record: dict) -> list[list[str]]:
    bf16, fp32, attention = (
        short(record["shares"][name], 2) for name in ("bf16_matmul", "fp32_matmul", "attention")
    )
    measured = (
        f"{record['all_s']:.1f} s, the first 200 users in {record['first_200_s']:.2f} s; "
        f"{record['of_ceiling']:.2f} times "
    )
    measured += (
        f"the time of the bare model on the same tokens; share of time: {bf16} bf16 "
        f"products, {fp32} fp32 products, "
    )
    what = f"a typed question, {record['users']:,} cached users"
    return [[what, f"{measured}{attention} attention", "1.3 times; first 200 users in 1 s"]]


def _versus(record: dict) -> list[list[str]]:
    what = "time of one more (user, question), relative to the same backbone on the events as text "
    what += f"({record['their_tokens']:,.0f} tokens) and the question"
    shared = (
        f"1/{1 / record['with_reading']:.0f} if prefilling is shared by {record['queries']} "
        "questions"
    )
    return [[what, f"1/{1 / record['ratio']:.0f}; {shared}", "1/50"]]


def _refresh(record: dict) -> list[list[str]]:
    what = (
        "time of adding a day of events to the cache (`engine.update`, `token_order=append_only`, "
    )
    what += (
        f"{record['slots']:.0f} prefix tokens), relative to recomputing; over "
        f"{_number(record['days'], 'day')}"
    )
    return [
        [
            what,
            f"{short(record['ratio'])}; {short(record['ran'])} of the prefix tokens recomputed",
            ".15",
        ]
    ]


def _tune(record: dict) -> list[list[str]]:
    measured = (
        f"{_times(record['speedup'])} times (bound by tokens: {_times(record['bound'])}); "
        "over recomputing the prefix "
    )
    measured += f"without gradients: {_times(record['speedup_reread'])} times"
    return [
        [
            "a prompt-tuning step on cached prefixes, speed-up over one pass without a cache",
            measured,
            "5",
        ]
    ]


def _train(record: dict) -> list[list[str]]:
    what = (
        f"{record['queries']} pairs per prefix ({record['prefix']} prefix tokens, "
        f"{record['tokens']} tokens per pair), "
    )
    measured = f"{_times(record['speedup'])} times (FLOP bound: {_times(record['bound'])}); "
    measured += f"{short(record['of_matmul'], 2)} of the matrix product rate"
    return [
        [
            f"{what}speed-up over one row per pair",
            measured,
            f"4{', beyond the bound' * (record['bound'] < 4)}",
        ]
    ]


def _scale(record: dict) -> list[list[str]]:
    two = {row["backend"]: short(row["linear"], 2) for row in record["rows"] if row["workers"] == 2}
    ways = ", ".join(
        f"{value} ({'processes' if name == 'local' else name})" for name, value in two.items()
    )
    ceiling, back = record["ceiling"], record["restart"]
    ways += (
        f"; matrix products alone {short(ceiling['products'], 2)}, memory copies "
        f"{short(ceiling['memory'], 2)}; "
    )
    same = all(row["identical"] for row in [*record["rows"], back])
    again = f"after a kill and a restart {back['lost']} users lost, {back['doubled']} duplicated"
    what = (
        f"scaling efficiency of two workers ({_number(record['threads'], 'thread')} each), "
        f"{record['users']} users x "
    )
    return [
        [
            f"{what}{record['queries']} queries",
            f"{ways}{'identical' if same else '**different**'} bytes; {again}",
            ".9",
        ]
    ]


def _texts(record: dict) -> list[list[str]]:
    measured = (
        f"peak memory {record['peak_gb']:.2f} GB when all are read; one lookup "
        f"{record['find_one_ms']:.1f} ms"
    )
    return [[f"{record['texts']:,} distinct texts in the on-disk text table", measured, "2 GB"]]


SPEED = {
    "cache": _cache,
    "ask": _ask,
    "versus": _versus,
    "refresh": _refresh,
    "tune": _tune,
    "train": _train,
}
SPEED |= {"scale": _scale, "texts": _texts}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; a column that is empty in every row is left out."""
    kept = [place for place in range(len(head)) if not rows or any(row[place] for row in rows)]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line[place] for place in kept) + " |" for line in lines)


def short(value: float, digits: int = 3) -> str:
    """Format a share as .805; values below .0095 get one more digit."""
    if abs(value) < 0.00005:
        return ".000"
    digits += digits == 3 and abs(value) < 0.0095
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


def spanned(span: dict) -> str:
    """Format a difference with its interval."""
    return f"{short(span['auc'])} ({short(span['low'])} to {short(span['high'])})"


def _valued(span: dict) -> str:
    return f"{short(span['auc'])} ({_span(span)})"


def _span(span: dict | None) -> str:
    return f"{short(span['low'])} to {short(span['high'])}" if span else ""


def _gap(span: list[float] | None) -> str:
    return (
        f"{'+' * (span[0] >= 0.00005)}{short(span[0])} ({short(span[1])} to {short(span[2])})"
        if span
        else "too few users"
    )


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _whole(share: float) -> str:
    return f"{100 * share:.0f} %"


def _number(many: int, noun: str = "") -> str:
    word = NUMBERS[many] if many < len(NUMBERS) else f"{many:,}"
    return f"{word} {noun}{'s' * (many != 1)}" if noun else word
