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


def told(*records: dict) -> str:
    """Return the commands, commit and machine of the records, one line for those that share commit
    and machine.
    """
    alike: dict[tuple, list[dict]] = {}
    for record in records:
        machine = record["machine"]
        threads = _number(machine["threads"], "thread", spelled=False)
        device = machine["gpu"] or f"{machine['processor']}, {threads}"
        kind = KINDS[machine.get("products", "bfloat16")]  # older records lack it
        alike.setdefault((record["commit"], device, kind), []).append(record)
    lines = []
    for (commit, device, kind), group in alike.items():
        names = "`, `".join(record["bench"] for record in group)
        rates = [record["machine"]["matmul_tflops"] for record in group]
        rate = " to ".join(sorted({str(min(rates)), str(max(rates))}, key=float))
        command = f"`python -m tests.benchmarks {names}`"
        lines.append(
            f"{command}, commit {commit}, {device}, {rate} TFLOP/s ({kind} matrix products)."
        )
    return "\n".join(lines)


def tasks_table(record: dict) -> str:
    """Return the methods of a `tasks` record, best first."""
    recovered = record.get("recovered")
    rows = []
    for name in _methods(record["average"]):
        row = record["average"][name]
        cells = [NAMES[name], short(row["auc"]), _interval(row), short(row["ks"])]
        cells.append(short(recovered[name]) if recovered else "")
        rows.append([*cells, _minus(record["anchor_minus"], name)])
    tasks = {row["task"] for row in record["tasks"]}
    head = [f"average of {_number(len(tasks), 'task')}", "AUC", "95 % CI", "KS", "recovered"]
    return table([*head, "Qanchor minus this (95 % CI)"], rows)


def summary_table(records: dict[str, dict]) -> str:
    """Return the label-free rankings of several `tasks` records beside what else needs no label of
    the judged window, and the probes on embeddings beside the strongest baselines that are trained
    on the labels, all over the same tasks.
    """
    label_free: dict[str, dict[str, str]] = {}
    probes: dict[str, dict[str, str]] = {}
    head = ["average AUC (95 % CI)", "labels"]
    for data, record in records.items():
        for name, span in _rankings(record).items():
            label_free.setdefault(name, {})[data] = spanned(span["average"])
        head.append(f"{data}, {_number(len(record['zero_shot']) - 1, 'task')}")
    for record in records.values():
        ranked = _methods(record["average_ranked"])
        baselines = [name for name in ranked if name not in OURS]
        for name in [*OURS, *baselines[:STRONGEST]]:
            probes[name] = {
                data: spanned(other["average_ranked"][name])
                for data, other in records.items()
                if name in other["average_ranked"]
            }
    rows = []
    for labels, methods in (("none", label_free), ("cross-validated", probes)):
        for name, found in methods.items():
            kind = "of earlier dates" if name in EARLIER else labels
            rows.append([NAMES[name], kind, *(found.get(data, "") for data in records)])
    return table(head, rows)


def label_free_table(record: dict) -> str:
    """Return the rankings of a `tasks` record that need no label of the judged window."""
    rows = []
    for name, span in _rankings(record).items():
        minus = _minus(record["zero_shot_minus"], name)
        rows.append([NAMES[name], spanned(span["average"]), minus])
    ranked = _number(len(record["zero_shot"]) - 1, "task")
    head = [f"label-free, average of {ranked}", "AUC (95 % CI)", "Qanchor minus this (95 % CI)"]
    return table(head, rows)


def _rankings(record: dict) -> dict[str, dict]:
    """Return the intervals of the rankings that need no label of the judged window, ours first."""
    return {"zero_shot": record["zero_shot_intervals"], **record["zero_shot_others"]}


def _methods(average: dict[str, dict]) -> list[str]:
    """Return the methods by falling AUC."""
    return sorted(average, key=lambda name: -average[name]["auc"])


def _minus(minus: dict[str, dict], name: str) -> str:
    """Format how much better ours is than a method, empty where that is not known."""
    return spanned(minus[name]) if name in minus else ""


def query_table(record: dict) -> str:
    """Return the AUC of a probe under other questions than the right one."""
    asked = record["query"]
    minus = record["query_minus"]
    spans = record["query_intervals"]
    worded = asked["paraphrases"]
    least = worded.index(min(worded))
    above = f"at most {spanned(minus['paraphrases'][least])}"
    reworded = f"{short(min(worded))} to {short(max(worded))}"
    rows = [
        ["the task's own question", short(asked["right"]), _interval(spans["right"]), ""],
        [f"{_number(len(worded), 'paraphrase')} of it", reworded, "", above],
    ]
    for kind, name in OTHERS.items():
        rows.append([name, short(asked[kind]), _interval(spans[kind]), spanned(minus[kind])])
    return table(["question", "AUC", "95 % CI", "own question minus this (95 % CI)"], rows)


def fairness_table(record: dict) -> str:
    """Return what a probe reads of attributes by question, and the gap in selection rates between
    attribute groups.
    """
    rows = {(row["source"], row["attribute"]): row for row in record["rows"]}
    sources = dict.fromkeys(row["source"] for row in record["rows"])
    traits = dict.fromkeys(row["attribute"] for row in record["rows"])
    traits.pop("average")
    asked = {task: f"the question about {task}" for task in record["asked"]}
    names = NAMES | asked | ASKED
    lines = []
    for source in sources:
        mean = rows[source, "average"]
        cells = [short(rows[source, trait]["auc"]) for trait in traits]
        interval = f"{short(mean['auc_low'])} to {short(mean['auc_high'])}"
        lines.append([names[source], *cells, short(mean["auc"]), interval])
    gaps: dict[tuple, dict] = {}
    for row in record["groups"]:
        gaps.setdefault((row["task"], row["arm"]), {})[row["attribute"]] = row["gap"]["selected"]
    scores = NAMES | {"anchor": "Qanchor", "zero_shot": "Qanchor, label-free"}
    selected = []
    for (task, arm), spans in gaps.items():
        selected.append([task, scores[arm], *(_gap(spans[trait]) for trait in traits)])
    read = table(["AUC of a probe for", *traits, "average", "95 % CI"], lines)
    return f"{read}\n\n{table(['top 20 % for', 'scored by', *traits], selected)}"


def prompts_table(record: dict) -> str:
    """Return soft prompts beside a probe on the same labels, by initial question; the last row is
    the paper's.
    """
    lines = []
    for way, row in record["average"].items():
        before = row["before"]
        after = row["after"]
        gain = _gap([row["gain"][name] for name in ("auc", "low", "high")])
        ks = f"{short(before['ks'])} to {short(after['ks'])}"
        silhouette = f"{short(before['silhouette'])} to {short(after['silhouette'])}"
        lines.append([WAYS[way], short(before["auc"]), short(after["auc"]), gain, ks, silhouette])
    lines.append(["the paper, on its own tasks", ".8104", ".8225", "+.012", "+.022", ""])
    head = ["question", "AUC before", "AUC after", "gain (95 % CI)", "KS", "silhouette"]
    return table(head, lines)


def fitted_table(record: dict) -> str:
    """Return what `fit` reaches: its ranking without labels beside parts of it and two that need no
    model, a linear probe on its embeddings, and what the backtest's chances are worth.
    """
    columns = {
        "label_free": "ranking, no labels",
        "without_aliases": "without topics",
        "without_associations": "without associations",
        "associations": "associations alone",
        "prior": "prior alone",
        "persistence": "persistence",
        "frequency": "all events",
        "recency": "recency",
        "probe": "probe",
        "grade": "grade",
        "chance_error": "error of the chance",
    }
    average = {"query": "**average of those answered**", **record["average"]}
    lines = []
    for row in [*record["rows"], average]:
        cells = [short(row[name]) if row.get(name) else "none" for name in columns]
        lines.append([row["query"], *cells])
    head = ["question", *columns.values()]
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
    lines = []
    for row in record["splits"]:
        cells = [short(row[name]) for name in ("auc", "persistence", "polarity")]
        lines.append([names[row["split"]], *cells])
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
        row = rows[*key, ""]
        other = rows[*key, "another"]
        shares = [_whole(row["share"]), _whole(other["share"])]
        shares.append(_whole(same[key]) if key in same else "")
        aucs = [short(row["evidence_auc"]), short(other["evidence_auc"])]
        lift = f"{row['evidence_lift']:.1f}"
        lines.append([name, *shares, *aucs, lift, short(row["label_auc"])])
    head = [
        "move",
        "stand out",
        "from another question",
        "from the question to its paraphrase",
        "AUC: has such events",
        "from another question",
        "times as many have",
        "AUC: label",
    ]
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
    columns = {
        "label_free": "ranking, no labels",
        "prior": "F: its prior alone",
        "alone": "body alone",
        "tokens_only": "the same, tokens only",
        "tokens_shuffled": "tokens of another user",
        "shuffled": "E: all of another user",
        "probe": "probe",
    }
    ranked = []
    concepts = []
    written = []
    for name, row in record["rows"].items():
        minus = record["minus"].get(name, {})
        cells = [short(row[column]) for column in columns]
        cells += [_minus(minus, "label_free"), _minus(minus, "alone")]
        ranked.append([BODIES[name], *cells, f"{row['seconds']:,.0f}"])
        splits = ("taught", "wording", "concept")
        concepts.append([BODIES[name], *_compared(row["concepts"], splits, "auc", "prior")])
        if "written" in row:
            grades = ("written", "score", "persistence")
            cells = _compared(row["written"], ("train", "held_out"), *grades)
            written.append([BODIES[name], *cells])
    head = [
        "body",
        *columns.values(),
        "B's ranking minus this",
        "B's body minus this",
        "training, s",
    ]
    tables = [table(head, ranked)]
    head = ["body (prior alone in brackets)", "taught", "new wording", "concept never taught"]
    tables.append(table(head, concepts))
    if written:
        head = ["written grade (from the score, from persistence)", "taught", "never taught"]
        tables.append(table(head, written))
    return "\n\n".join(tables)


def _compared(parts: dict, splits: tuple, name: str, *others: str) -> list[str]:
    """Format a value of each split with others beside it in brackets."""
    cells = []
    for split in splits:
        part = parts.get(split)
        if part is None:
            cells.append("none")
            continue
        beside = ", ".join(short(part[other]) for other in others)
        cells.append(f"{short(part[name])} ({beside})")
    return cells


def coles_table(record: dict) -> str:
    """Return probes on the embeddings of a peer beside ours and plain features, best first."""
    rows = []
    for name in _methods(record["average"]):
        minus = _minus(record["anchor_minus"], name)
        rows.append([NAMES[name], spanned(record["average"][name]), minus])
    return table(["probe on", "AUC (95 % CI)", "Qanchor minus this (95 % CI)"], rows)


def attention_table(record: dict) -> str:
    """Return how often each measure ranks a carrier of the task first, under the question and under
    a tuned prompt.
    """
    named = record["named"]
    tuned = record["tuned"]["named"]
    lines = []
    for name, words in LOOKS.items():
        cells = []
        for kind in ("as_it_is", "against"):
            first = [_whole(part[name][kind]["first"]) for part in (named, tuned)]
            cells.append(", ".join(first))
        carriers = [_whole(part[name]["carriers"]) for part in (named, tuned)]
        lines.append([words, *cells, ", ".join(carriers)])
    lines.append(["random choice", *[_whole(record["chance"])] * 3])
    head = [
        "question, tuned prompt",
        "carrier ranked first",
        "the same, minus the mean over tasks",
        "share on carriers",
    ]
    agreement = short(record["agreement"]["weight"])
    agreement_tuned = short(record["tuned"]["agreement"]["weight"])
    held_out = record["held_out"]
    saliency = held_out["saliency"]
    raw = held_out["raw_attention"]
    text = (
        "Rank correlation of saliency and deletion within a user:"
        f" {agreement} under the question, {agreement_tuned} under the tuned prompt."
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
        if row["top"] != BEST:
            continue
        lift = f"{row['lift']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        minus = f"{row['minus']:+.2f} ({row['minus_low']:.2f} to {row['minus_high']:.2f})"
        if row["arm"] == first:
            minus = ""
        rows.append([ARMS[row["arm"]], f"{row['users']:,}", _percent(row["rate"]), lift, minus])
    head = ["top 20 % by", "users", f"`{record['task']}`", "lift (95 % CI)"]
    return table([*head, f"minus {NAMES[first]} (95 % CI)"], rows)


def frozen_table(record: dict) -> str:
    """Return label-free rankings at several cut-offs, of all households and of unseen ones."""
    groups = {"all": "all", "unseen": "in no training step"}
    rows = []
    for row in record["rows"]:
        auc = f"{short(row['anchor'])} ({_interval(row)})"
        cells = [
            row["cutoff"],
            f"{row['users']:,}, {groups[row['group']]}",
            str(row["tasks"]),
            auc,
            f"{short(row['lowest'])} to {short(row['highest'])}",
        ]
        for name in ("prior", "persistence", "earlier_logistic", "earlier_lightgbm"):
            cells.append(short(row[name]))
        rows.append(cells)
    seeds = _number(record["seeds"], "training seed")
    head = [
        "cut-off",
        "households",
        "tasks",
        "AUC (95 % CI)",
        seeds,
        "prior alone",
        "persistence",
        "logistic, earlier labels",
        "LightGBM, earlier labels",
    ]
    return table(head, rows)


def speed_table(records: dict[str, dict]) -> str:
    """Return the performance records in one table, each beside its goal."""
    rows = []
    for name, rows_of in SPEED.items():
        for row in rows_of(records[name]):
            rows.append([f"`{name}`", *row])
    return table(["benchmark", "what", "measured", "goal"], rows)


def _cache(record: dict) -> list[list[str]]:
    rows = record["rows"]
    asked = " / ".join(str(row["queries"]) for row in rows)
    faster = " / ".join(_times(row["speedup"]) for row in rows)
    of_bound = " / ".join(short(row["of_bound"], 2) for row in rows)
    users = rows[0]["users"]
    what = f"{asked} questions to {users} users read once, speed-up over reading for each"
    measured = f"{faster} times; {of_bound} of the bound"
    return [[what, measured, ".85 of the bound, .80 at 32 questions"]]


def _ask(record: dict) -> list[list[str]]:
    embedded = (
        f"embedded in {record['all_s']:.2f} s, the first 200 in {record['first_200_s']:.2f} s"
    )
    measured = f"{embedded}; ranked in {record['rank_s']:.2f} s"
    what = f"a typed question to {record['users']:,} users read before"
    return [[what, measured, "all in 1 s"]]


def _scale(record: dict) -> list[list[str]]:
    ways = []
    for row in record["rows"]:
        if row["workers"] == 2:
            backend = "processes" if row["backend"] == "local" else row["backend"]
            cpu = f"{short(row['linear_cpu'], 2)} by processor time"
            ways.append(f"{short(row['linear'], 2)} ({backend}; {cpu})")
    products = short(record["ceiling"]["products"], 2)
    memory = short(record["ceiling"]["memory"], 2)
    restart = record["restart"]
    is_same = all(row["identical"] for row in [*record["rows"], restart])
    threads = _number(record["threads"], "thread")
    what = (
        f"scaling efficiency of two workers ({threads} each), "
        f"{record['users']} users x {record['queries']} queries"
    )
    measured = (
        f"{', '.join(ways)}; matrix products alone {products}, memory copies {memory}; "
        f"{'identical' if is_same else '**different**'} bytes; after a kill and a restart "
        f"{restart['lost']} users lost, {restart['doubled']} duplicated"
    )
    return [[what, measured, ".9"]]


def _texts(record: dict) -> list[list[str]]:
    peak = f"peak memory {record['peak_gb']:.2f} GB when all are read"
    measured = f"{peak}; one lookup {record['find_one_ms']:.1f} ms"
    return [[f"{record['texts']:,} distinct texts in the on-disk text table", measured, "2 GB"]]


def _open(record: dict) -> list[list[str]]:
    rows = []
    for row, goal in zip(record["rows"], ("60 s", "180 s"), strict=True):
        what = f"a CSV of {row['events']:,} events of {row['users']:,} users to the first answer"
        steps = [f"{step} {row[f'{step}_s']:.1f} s" for step in ("read", "fit", "answer")]
        parts = f"{', '.join(steps)}, the rest starts Python"
        rows.append([what, f"{row['cold_s']:.0f} s ({parts})", goal])
    return rows


SPEED = {"cache": _cache, "ask": _ask, "open": _open, "scale": _scale, "texts": _texts}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; a column that is empty in every row is left out."""
    columns = [place for place in range(len(head)) if any(row[place] for row in rows)]
    lines = []
    for row in [head, ["---"] * len(head), *rows]:
        cells = [row[place] for place in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def short(value: float, digits: int = 3) -> str:
    """Format a share as .805; values below .0095 get one more digit."""
    if abs(value) < 0.00005:
        return ".000"
    if digits == 3 and abs(value) < 0.0095:
        digits = 4
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def spanned(span: dict) -> str:
    """Format a value, or a difference, with its interval."""
    return f"{short(span['auc'])} ({_interval(span)})"


def _interval(span: dict) -> str:
    return f"{short(span['low'])} to {short(span['high'])}"


def _gap(span: list[float] | None) -> str:
    if span is None:
        return "too few users"
    gap, low, high = span
    sign = "+" if gap >= 0.00005 else ""
    return f"{sign}{short(gap)} ({short(low)} to {short(high)})"


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _whole(share: float) -> str:
    return f"{100 * share:.0f} %"


def _number(number: int, noun: str, spelled: bool = True) -> str:
    """Return a number with its noun; small numbers are words if `spelled`."""
    words = f"{number:,}"
    if spelled and number < len(NUMBERS):
        words = NUMBERS[number]
    return f"{words} {noun}" if number == 1 else f"{words} {noun}s"
