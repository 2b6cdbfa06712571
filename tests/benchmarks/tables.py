"""Render benchmark records as Markdown tables, one function per table."""

from __future__ import annotations

NAMES = {
    "anchor": "**Qanchor**, probe on the task's own question",
    "zero_shot": "**Qanchor**, label-free ranking",
    "anchor_no_query": "**Qanchor**, probe without a question",
    "anchor_untrained": "**Qanchor**, untrained, probe",
    "lightgbm": "LightGBM on RFM + text counts",
    "features": "the model's own numbers of a user, logistic",
    "features_lightgbm": "the model's own numbers of a user, LightGBM",
    "rfm_svd": "RFM + SVD-64 of text counts",
    "coles": "CoLES",
    "coles_rfm": "CoLES + RFM",
    "rfm_svd_minilm": "RFM + SVD-64 of text counts + SVD-64 of mean MiniLM",
    "minilm_rfm": "mean MiniLM + RFM",
    "rfm": "RFM",
    "counts": "text counts",
    "minilm": "mean MiniLM",
    "persistence": "how often what the question means happened before",
    "prior": "the prior of the model alone",
    "alone": "the body of the model alone",
    "shuffled": "the body alone, users shuffled",
    "earlier_logistic": "logistic regression fitted at earlier cut-offs",
    "earlier_lightgbm": "LightGBM fitted at earlier cut-offs",
}
OURS = ("anchor", "anchor_no_query", "anchor_untrained")
EARLIER = ("earlier_logistic", "earlier_lightgbm")
STRONGEST = 2  # baselines with labels in the summary
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
LOOKS = {
    "weight": "saliency",
    "per_token": "saliency per token",
    "deletion_effect": "deletion",
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
        record["anchor_minus"],
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
    """Return the label-free rankings of several `tasks` records beside what else needs no label of
    the judged window, and the probes on embeddings beside the strongest baselines that are trained
    on the labels, all over the same tasks. A record without probes has label-free rows only.
    """
    label_free: dict[str, dict[str, dict]] = {}
    probes: dict[str, dict[str, dict]] = {}
    head = ["average AUC (95 % CI)", "labels"]
    for data, record in records.items():
        spans = {"zero_shot": record["zero_shot_intervals"]} | record["zero_shot_others"]
        for name, span in spans.items():
            label_free.setdefault(name, {})[data] = span["average"]
        head.append(f"{data}, {_number(len(record['zero_shot']) - 1, 'task')}")
    probed = {data: record for data, record in records.items() if "average" in record}
    for record in probed.values():
        ranked = _methods(record, "average_ranked")
        baselines = [name for name in ranked if name not in OURS][:STRONGEST]
        for name in (*OURS, *baselines):
            of_name = {data: other["average_ranked"] for data, other in probed.items()}
            probes[name] = {data: found[name] for data, found in of_name.items() if name in found}
    rows = []
    for labels, methods in (("none", label_free), ("cross-validated", probes)):
        for name, found in methods.items():
            cells = [_valued(found[data]) if data in found else "" for data in records]
            kind = "of earlier dates" if name in EARLIER else labels
            rows.append([NAMES[name], kind, *cells])
    return table(head, rows)


def label_free_table(record: dict) -> str:
    """Return the rankings of a `tasks` record that need no label of the judged window."""
    minus = record["zero_shot_minus"]
    spans = {"zero_shot": record["zero_shot_intervals"]} | record["zero_shot_others"]
    rows = [
        [NAMES[name], _valued(span["average"]), spanned(minus[name]) if name in minus else ""]
        for name, span in spans.items()
    ]
    ranked = _number(len(record["zero_shot"]) - 1, "task")
    head = [f"label-free, average of {ranked}", "AUC (95 % CI)", "Qanchor minus this (95 % CI)"]
    return table(head, rows)


def _methods(record: dict, kind: str = "average") -> list[str]:
    """Return the methods of a `tasks` record, best first; methods without a display name are kept
    under their own.
    """
    return sorted(record[kind], key=lambda name: -record[kind][name]["auc"])


def query_table(record: dict) -> str:
    """Return the AUC of a probe under other questions than the right one."""
    asked, minus, spans = record["query"], record["query_minus"], record["query_intervals"]
    worded = asked["paraphrases"]
    least = min(range(len(worded)), key=worded.__getitem__)
    rows = [["the task's own question", short(asked["right"]), _span(spans["right"]), ""]]
    reworded = f"{short(min(worded))} to {short(max(worded))}"
    above = f"at most {spanned(minus['paraphrases'][least])}"
    rows.append([f"{_number(len(worded), 'paraphrase')} of it", reworded, "", above])
    rows += [
        [name, short(asked[kind]), _span(spans[kind]), spanned(minus[kind])]
        for kind, name in OTHERS.items()
    ]
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


def fitted_table(record: dict) -> str:
    """Return what `fit` reaches: its ranking without labels beside parts of it and two that need no
    model, a linear probe on its embeddings, and what the backtest's chances are worth.
    """
    columns = ("label_free", "without_aliases", "without_associations", "associations", "prior")
    columns += ("persistence", "frequency", "recency", "probe", "grade", "chance_error")
    rows = [*record["rows"], {"query": "**average of those answered**"} | record["average"]]
    lines = [
        [row["query"], *(short(row[name]) if row.get(name) else "none" for name in columns)]
        for row in rows
    ]
    head = ["question", "ranking, no labels", "without topics", "without associations"]
    head += ["associations alone", "prior alone", "persistence", "all events", "recency"]
    head += ["probe", "grade", "error of the chance"]
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


SENSE_KINDS = {
    "own": "about concepts never taught",
    "topic": "about anything",
    "question": "about staying and leaving, whole questions",
}


# what is left out of a question; "model": all of it
SENSE_WITHOUT = ("", "phrasing", "vector", "model")


def senses_table(record: dict) -> str:
    """Return the share of questions in untaught wordings whose sense is read right, beside the same
    without one part of what is read, and a list of words.
    """
    right = {(row["without"], row["kind"], row["sense"]): row["mean"] for row in record["rows"]}
    lines = []
    for kind, name in SENSE_KINDS.items():
        for sense, word in ((1, "affirm"), (-1, "deny")):
            cells = [short(right[part, kind, sense]) for part in SENSE_WITHOUT]
            lines.append([f"{name}: {word}", *cells])
    head = ["questions", "sense right", "without phrasing", "phrasing alone", "a list of words"]
    return table(head, lines)


MOVES = {
    ("residual", "paraphrases"): "residual, beyond what five paraphrases move",
    ("residual", "others"): "residual",
    ("unaligned", "others"): "distance, the common part included",
    ("score", "others"): "the score alone",
    ("toward_yes", "others"): "toward yes",
    ("toward_yes", "lens"): "**toward yes, at least one unit (the lens)**",
}


def movement_table(record: dict) -> str:
    """Return who stands out by each statistic, from no question and from another."""
    rows = {(row["statistic"], row["rule"], row["from"]): row for row in record["rows"]}
    same = {(row["statistic"], row["rule"]): row["mean"] for row in record["paraphrased"]}
    lines = []
    for key, name in MOVES.items():
        row, other = rows[*key, ""], rows[*key, "another"]
        shares = [f"{100 * each['share']:.0f} %" for each in (row, other)]
        shares.append(f"{100 * same[key]:.0f} %" if key in same else "")
        aucs = [short(each["evidence_auc"]) for each in (row, other)]
        lift = f"{row['evidence_lift']:.1f}"
        lines.append([name, *shares, *aucs, lift, short(row["label_auc"])])
    head = ["move", "stand out", "from another question", "from the question to its paraphrase"]
    head += ["AUC: has such events", "from another question", "times as many have", "AUC: label"]
    return table(head, lines)


BODIES = {
    "pointing": "A: pointing, no language model",
    "same_budget": "A, trained as B, C and D are",
    "language_model": "B: language model (SmolLM2), contrastive weight 1",
    "light_contrastive": "B, contrastive weight .1",
    "without_contrastive": "B without the contrastive loss",
    "without_autoregressive": "B without the autoregressive loss",
    "ranking_only": "B with the ranking loss alone",
    "longer": "B with three times the steps",
    "four_layers": "B, last 4 layers",
    "sixteen_layers": "B, last 16 layers",
    "dense_teaching": "B, contrastive weight .1, taught what A says (`fit`)",
    "prefix": "B in the paper's form, all 30 layers",
    "random_weights": "C: the same shape, random weights",
    "one_layer": "D: one attention layer",
}


def reading_table(record: dict) -> str:
    """Return what the language model adds to a ranking, beside the controls of its reading."""
    columns = ("label_free", "prior", "alone", "tokens_only", "tokens_shuffled", "shuffled")
    lines = []
    concepts = []
    written = []
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
        if "written" in row:
            splits = [row["written"].get(split) for split in ("train", "held_out")]
            cells = [
                f"{short(part['written'])} ({short(part['score'])}, {short(part['persistence'])})"
                if part
                else "none"
                for part in splits
            ]
            written.append([BODIES[name], *cells])
    head = ["body", "ranking, no labels", "F: its prior alone", "body alone"]
    head += ["the same, tokens only", "tokens of another user", "E: all of another user", "probe"]
    head += ["B's ranking minus this", "B's body minus this", "training, s"]
    of_concepts = [
        "body (prior alone in brackets)",
        "taught",
        "new wording",
        "concept never taught",
    ]
    tables = [table(head, lines), table(of_concepts, concepts)]
    if written:
        of_answers = ["written grade (from the score, from persistence)", "taught", "never taught"]
        tables.append(table(of_answers, written))
    return "\n\n".join(tables)


def coles_table(record: dict) -> str:
    """Return probes on the embeddings of a peer beside ours and plain features, best first."""
    minus = record["anchor_minus"]
    rows = [
        [
            NAMES[name],
            _valued(record["average"][name]),
            spanned(minus[name]) if name in minus else "",
        ]
        for name in _methods(record)
    ]
    return table(["probe on", "AUC (95 % CI)", "Qanchor minus this (95 % CI)"], rows)


def attention_table(record: dict) -> str:
    """Return how often each measure ranks a carrier of the task first, under the question and under
    a tuned prompt.
    """
    lines = []
    for name, said in LOOKS.items():
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
    held_out = record["held_out"]
    saliency, raw = held_out["saliency"], held_out["raw_attention"]
    text = (
        "Rank correlation of saliency and deletion within a user:"
        f" {short(agreements[0])} under the question, {short(agreements[1])} under the tuned"
        " prompt."
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


def frozen_table(record: dict) -> str:
    """Return label-free rankings at several cut-offs, of all households and of unseen ones."""
    groups = {"all": "all", "unseen": "in no training step"}
    rows = []
    for row in record["rows"]:
        interval = f"{short(row['anchor'])} ({short(row['low'])} to {short(row['high'])})"
        cells = [row["cutoff"], f"{row['users']:,}, {groups[row['group']]}", str(row["tasks"])]
        cells += [interval, f"{short(row['lowest'])} to {short(row['highest'])}"]
        controls = ("prior", "persistence", "earlier_logistic", "earlier_lightgbm")
        rows.append([*cells, *(short(row[name]) for name in controls)])
    seeds = f"{_number(record['seeds'], 'training seed')}"
    head = ["cut-off", "households", "tasks", "AUC (95 % CI)", seeds, "prior alone", "persistence"]
    head += ["logistic, earlier labels", "LightGBM, earlier labels"]
    return table(head, rows)


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
    return f"{made}\n\n{grown}".strip()


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
    rows = record["rows"]
    asked = " / ".join(str(row["queries"]) for row in rows)
    what = (
        f"{asked} questions to {rows[0]['users']} users read once, speed-up over reading for each"
    )
    bound = f"{' / '.join(short(row['of_bound'], 2) for row in rows)} of the bound"
    measured = f"{' / '.join(_times(row['speedup']) for row in rows)} times; {bound}"
    return [[what, measured, ".85 of the bound, .80 at 32 questions"]]


def _ask(record: dict) -> list[list[str]]:
    measured = (
        f"embedded in {record['all_s']:.2f} s, the first 200 in {record['first_200_s']:.2f} s;"
        f" ranked in {record['rank_s']:.2f} s"
    )
    what = f"a typed question to {record['users']:,} users read before"
    return [[what, measured, "all in 1 s"]]


def _scale(record: dict) -> list[list[str]]:
    ways = ", ".join(
        f"{short(row['linear'], 2)}"
        f" ({'processes' if row['backend'] == 'local' else row['backend']};"
        f" {short(row['linear_cpu'], 2)} by processor time)"
        for row in record["rows"]
        if row["workers"] == 2
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


def _open(record: dict) -> list[list[str]]:
    rows = []
    for row, goal in zip(record["rows"], ("60 s", "180 s"), strict=True):
        what = f"a CSV of {row['events']:,} events of {row['users']:,} users to the first answer"
        parts = (
            f"read {row['read_s']:.1f} s, fit {row['fit_s']:.1f} s, answer {row['answer_s']:.1f} s"
        )
        rows.append([what, f"{row['cold_s']:.0f} s ({parts}, the rest starts Python)", goal])
    return rows


SPEED = {"cache": _cache, "ask": _ask, "open": _open, "scale": _scale, "texts": _texts}


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


def _span(span: dict) -> str:
    return f"{short(span['low'])} to {short(span['high'])}"


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
