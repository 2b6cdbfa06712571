"""The records of the benches as tables in Markdown, one function a table: plain data in, what README shows out."""

from __future__ import annotations

from itertools import groupby

NAMES = {
    "anchor": "**ours**, each task's own question",
    "anchor_no_query": "**ours**, asked nothing",
    "anchor_untrained": "**ours**, untrained",
    "lightgbm": "LightGBM on RFM + counts (trained on each task's labels)",
    "rfm_svd": "RFM + SVD-64 of counts",
    "rfm_svd_minilm": "RFM + SVD-64 + SVD-64 of MiniLM",
    "minilm_rfm": "MiniLM + RFM",
    "rfm": "RFM",
    "counts": "counts of all texts",
    "minilm": "mean MiniLM",
    "backbone_text": "the language model reads a list of what each did",
}
ASKED = {"itself": "the question about it", "nothing": "nothing asked", "generic": "a generic question"}
OTHERS = {"none": "nothing", "generic": "a generic question", "wrong": "another task's question"}
WAYS = {"right": "the task's own question", "vague": "a vague question", "vague_seek": "the vague one, with `seek`"}
CURVES = {
    "vectors": ("vector", "{}, 100 steps"),
    "steps": ("step", "6 vectors, {} at most"),
    "untrained": ("step", "without pre-training, {}"),
    "lora": ("step", "LoRA on the same labels, {}"),
}
LOOKS = {"weight": "attention", "per_token": "the same by slot", "deletion_effect": "deletion", "gradient": "gradient x input"}
ARMS = {
    "rfm": "RFM, fitted to the label",
    "lightgbm": "LightGBM on RFM + counts, fitted to the label",
    "anchor": "**ours**, a probe fitted to the label",
    "zero_shot": "**ours**, the question alone: no label",
}
BEST = 0.2  # of the shares in a record of `bench replay`, the one that is shown
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
KINDS = {"bfloat16": "bf16", "float32": "fp32"}  # of products
FEW = 4  # tasks that still have a column each


def told(*records: dict) -> str:
    """Say on which commit and machine records were made, once for those that share both."""
    made: dict = {}
    for record in records:
        machine = record["machine"]
        threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
        kind = KINDS[machine.get("products", "bfloat16")]  # older records lack it
        made.setdefault((record["commit"], machine["gpu"] or f"{machine['processor']}, {threads}", kind), []).append(record)
    lines = []
    for (commit, on, kind), some in made.items():
        rates = sorted({record["machine"]["matmul_tflops"] for record in some})
        names = "`, `".join(record["bench"] for record in some)
        rate = " to ".join(str(end) for end in dict.fromkeys((rates[0], rates[-1])))
        lines.append(f"`bench {names}`, commit {commit}, {on}, {rate} TFLOP/s in {kind} products.")
    return "\n".join(lines)


def tasks_table(record: dict) -> str:
    """Set the methods of a record of `bench tasks` in a table, the best first; few tasks have a column each."""
    average, minus, found = record["average"], record.get("anchor_minus", {}), record.get("recovered")
    tasks = list(dict.fromkeys(row["task"] for row in record["tasks"]))
    each = {(row["task"], row["method"]): row["auc"] for row in record["tasks"]}
    alone = tasks if 1 < len(tasks) <= FEW else []
    rows = []
    for name in sorted((n for n in NAMES if n in average), key=lambda n: -average[n]["auc"]):
        row = average[name]
        cells = [NAMES[name], short(row["auc"]), f"{short(row['low'])} to {short(row['high'])}", short(row["ks"])]
        cells += [short(each[task, name]) for task in alone] + ([short(found[name])] if found else [])
        rows.append([*cells, spanned(minus[name])] if name in minus else [*cells, ""])
    head = [f"average of {_number(len(tasks), 'task')}", "AUC", "95 %", "KS", *alone]
    return table([*head, *(["recovered"] if found else []), "ours is above by"], rows)


def query_table(record: dict) -> str:
    """Set what other questions than the right one give; older records have no intervals, profiles alone no zero-shot."""
    asked, minus, spans = record["query"], record.get("query_minus", {}), record.get("query_intervals", {})
    worded, right = asked["paraphrases"], asked["right"]
    least = min(range(len(worded)), key=worded.__getitem__)

    def row(name: str, kind: str) -> list[str]:
        above = spanned(minus[kind]) if kind in minus else short(right - asked[kind])
        return [name, short(asked[kind]), _span(spans.get(kind)), above]

    above = spanned(minus["paraphrases"][least]) if minus else short(right - worded[least])
    rows = [["the right question", short(right), _span(spans.get("right")), ""]]
    reworded = f"{short(min(worded))} to {short(max(worded))}"
    rows.append([f"{_number(len(worded))} rewordings of it", reworded, "", f"at most {above}"])
    rows += [row(name, kind) for kind, name in OTHERS.items()]
    if zero := record.get("zero_shot"):
        name = f"the right question, no label at all (zero-shot, {_number(len(zero) - 1, 'task')})"
        rows.append([name, short(zero["average"]), _span(record.get("zero_shot_intervals", {}).get("average")), ""])
    return table(["asked", "AUC", "95 %", "the right question is above by"], rows)


def fairness_table(record: dict) -> str:
    """Set out what a probe reads of people who were never asked about it, and whom the best fifth of a score passes over."""
    rows = {(row["source"], row["attribute"]): row for row in record["rows"]}
    traits = [name for name in dict.fromkeys(row["attribute"] for row in record["rows"]) if name != "average"]
    lines, gaps = [], []
    for source in dict.fromkeys(row["source"] for row in record["rows"]):
        mean = rows[source, "average"]
        asked = ASKED.get(source) or (f"the question about {source}" if source in record["asked"] else NAMES[source])
        cells = [short(rows[source, trait]["auc"]) for trait in traits]
        lines.append([asked, *cells, short(mean["auc"]), f"{short(mean['auc_low'])} to {short(mean['auc_high'])}"])
    for task, arm in dict.fromkeys((row["task"], row["arm"]) for row in record["groups"]):
        mine = {row["attribute"]: row for row in record["groups"] if (row["task"], row["arm"]) == (task, arm)}
        gaps.append([task, {"anchor": "ours", "zero_shot": "ours, no label"}.get(arm, NAMES.get(arm, arm))])
        gaps[-1] += [_gap(mine[trait]["gap"]["selected"]) for trait in traits]
    read = table(["AUC of a probe for", *traits, "average", "95 %"], lines)
    return f"{read}\n\n{table(['chosen: best fifth by', 'score', *traits], gaps)}" if gaps else read


def prompts_table(record: dict) -> str:
    """Set soft prompts beside a probe on the same labels, by what was typed; the last row is the paper's."""
    lines = []
    for way, row in record["average"].items():
        cells = [f"{short(row['before'][name])} to {short(row['after'][name])}" for name in ("ks", "silhouette")]
        gain = _gap([row["gain"][name] for name in ("auc", "low", "high")])
        lines.append([WAYS[way], short(row["before"]["auc"]), short(row["after"]["auc"]), gain, *cells])
    lines.append(["the paper, its own tasks", ".8104", ".8225", "+.012", "+.022", ""])
    return table(["typed", "AUC before", "after", "gain (95 %)", "KS", "silhouette"], lines)


def curves_table(record: dict) -> str:
    """Show what tuning a vague question gains: by vectors, by steps, without pre-training, and by LoRA instead."""
    paper, lines = record["paper"], []
    for row in record["average"]:
        gain = _gap([row["gain"][name] for name in ("auc", "low", "high")])
        theirs = paper.get(row["curve"], {}).get(str(row["x"]))
        noun, name = CURVES[row["curve"]]
        name = name.format(_number(row["x"], noun))
        lines.append([name, short(row["before"]), short(row["after"]), gain, short(theirs, 4) if theirs else ""])
    head = [f"average of {_number(len(record['tasks']), 'task')}", "AUC before", "after", "gain (95 %)", "the paper's AUC"]
    return table(head, lines)


def attention_table(record: dict) -> str:
    """Say how often each measure names a modality that carries the task, under the question and under a tuned prompt."""
    lines = []
    for name, said in LOOKS.items():
        parts = [side[name] for side in (record["named"], record["tuned"]["named"])]
        columns = [[part[kind]["first"] for part in parts] for kind in ("as_it_is", "against")]
        lines.append([said, *(", ".join(map(_whole, two)) for two in (*columns, [part["carriers"] for part in parts]))])
    lines.append(["a blind guess", *[_whole(record["chance"])] * 3])
    head = ["by question, by tuned prompt", "first is a carrier", "less its mean over tasks", "of the sum to carriers"]
    return table(head, lines)


def replay_table(record: dict) -> str:
    """Say what the best fifth by each score did afterwards, beside everybody; the intervals are those of the lift."""
    rows = [["nobody chosen: all", f"{record['users']:,}", _percent(record["rate"]), "1.00", ""]]
    first = record["rows"][0]["arm"]
    for row in record["rows"]:
        if row["top"] == BEST:
            lift = f"{row['lift']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            more = f"{row['minus']:+.2f} ({row['minus_low']:.2f} to {row['minus_high']:.2f})" if row["arm"] != first else ""
            rows.append([ARMS.get(row["arm"], row["arm"]), f"{row['users']:,}", _percent(row["rate"]), lift, more])
    head = ["the best fifth by", "users", f"`{record['task']}`", "lift (95 %)", f"above that of {NAMES.get(first, first)}"]
    return table(head, rows)


def ablations_table(record: dict) -> str:
    """Set the variants of a preset beside the whole, and beside what the paper's model loses or gains by the same."""
    rows = []
    for place, row in enumerate(record["rows"]):
        less = _gap([row["minus"][name] for name in ("auc", "low", "high")]) if place else ""
        paper = f"{'+' * (row['paper'] > 0)}{short(row['paper'])}" if row["paper"] is not None else ""
        rows.append([row["variant"], short(row["auc"]), short(row["wrong"]), less, paper])
    return table(["variant", "right question", "another task's", "right, against the first (95 %)", "the paper's model"], rows)


def useru_table(record: dict) -> str:
    """Say how fast and in how little memory events became pairs, and how the time grows with them."""
    rows = []
    for row in record["rows"]:
        numbers = [f"{row['scale']}", f"{row['events']:,}", f"{row['seconds']:.1f}", f"{round(row['events_per_s'], -3):,.0f}"]
        rows.append([*numbers, f"{row['peak_gb']:.2f} GB"])
    made = table(["copies of the Complete Journey", "events", "seconds", "events a second", "peak memory"], rows)
    power = record["growth_exponent"]
    grown = f"The seconds grow as the events to the power of {power:.3f} (goal: at most 1.05). " if power else ""
    return f"{made}\n\n{grown}Goals on 2 cores: one copy within 30 s, twenty below 2 GB."


def speed_table(records: dict[str, dict]) -> str:
    """Set the records of the benches of speed in one table, each beside its goal."""
    rows = [[f"`{name}`", *row] for name, made in SPEED.items() if name in records for row in made(records[name])]
    return table(["bench", "what", "measured", "goal"], rows)


def _cache(record: dict) -> list[list[str]]:
    found = []
    for (slots, tokens), some in groupby(record["rows"], key=lambda row: (row["prefix"], row["query"])):
        rows = list(some)
        asked = f"{' / '.join(str(row['queries']) for row in rows)} questions of users read once, against reading anew"
        what = f"the same with {slots} slots, {tokens} tokens" if found else f"{asked}; {slots} slots, {tokens} tokens each"
        bound = f"{', '.join(short(row['of_bound'], 2) for row in rows)} of the bound"
        found.append([what, f"{' / '.join(_times(row['speedup']) for row in rows)} times, {bound}", ".85, .80 at 32"])
    return found


def _ask(record: dict) -> list[list[str]]:
    bf16, fp32, attention = (short(record["shares"][name], 2) for name in ("bf16_matmul", "fp32_matmul", "attention"))
    measured = f"{record['all_s']:.1f} s, the first 200 in {record['first_200_s']:.2f} s: {record['of_ceiling']:.2f} times as "
    measured += f"long as the bare model takes for its tokens; {bf16} of it in bf16 products, {fp32} in fp32 ones, {attention} "
    what = f"a typed question to {record['users']:,} users read before"
    return [[what, f"{measured}in attention", "1.3 times; first 200 in 1 s"]]


def _versus(record: dict) -> list[list[str]]:
    what = "one more (user, question) against the same backbone reading the events as text "
    what += f"({record['their_tokens']:,.0f} tokens) with the question behind"
    shared = f"1/{1 / record['with_reading']:.0f} with the reading shared by {record['queries']} questions"
    return [[what, f"1/{1 / record['ratio']:.0f}; {shared}", "1/50"]]


def _refresh(record: dict) -> list[list[str]]:
    what = f"a day's events taken up (`append`, appendable layout, {record['slots']:.0f} slots), over "
    what += f"{_number(record['days'], 'day')}, against reading anew"
    return [[what, f"{short(record['ratio'])}; {short(record['ran'])} of the slots ran", ".15"]]


def _tune(record: dict) -> list[list[str]]:
    measured = f"{_times(record['speedup'])} times as fast as everything in one pass with no cache (bound "
    measured += f"{_times(record['bound'])} by tokens), {_times(record['speedup_reread'])} times as fast as reading the users "
    return [["a step of a soft prompt on cached prefixes", f"{measured}again without gradients", "5"]]


def _train(record: dict) -> list[list[str]]:
    what = (
        f"{record['queries']} pairs of a user behind one prefix ({record['prefix']} slots, {record['tokens']} tokens a pair), "
    )
    measured = f"{_times(record['speedup'])} times of a bound of {_times(record['bound'])}; "
    measured += f"{short(record['of_matmul'], 2)} of the products' rate"
    return [[f"{what}against one row a pair", measured, f"4{', beyond the bound' * (record['bound'] < 4)}"]]


def _scale(record: dict) -> list[list[str]]:
    two = {row["backend"]: short(row["linear"], 2) for row in record["rows"] if row["workers"] == 2}
    ways = ", ".join(f"{value} {'as processes' if name == 'local' else f'under {name}'}" for name, value in two.items())
    ceiling, back = record["ceiling"], record["restart"]
    ways += f" (products of matrices keep {short(ceiling['products'], 2)} so, moving memory {short(ceiling['memory'], 2)}); "
    same = all(row["identical"] for row in [*record["rows"], back])
    again = f"killed and started again: {_number(back['lost'], 'user')} lost, {back['doubled'] or 'none'} doubled"
    what = f"a second worker of {_number(record['threads'], 'thread')} beside the first, {record['users']} users x "
    return [[f"{what}{record['queries']} questions", f"{ways}{'the same' if same else '**other**'} bytes; {again}", ".9"]]


def _texts(record: dict) -> list[list[str]]:
    measured = f"{record['peak_gb']:.2f} GB at most while all are read, one found in {record['find_one_ms']:.1f} ms"
    return [[f"{record['texts']:,} distinct texts in the table on disk", measured, "2 GB"]]


SPEED = {"cache": _cache, "ask": _ask, "versus": _versus, "refresh": _refresh, "tune": _tune, "train": _train}
SPEED |= {"scale": _scale, "texts": _texts}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Write a table in Markdown; a column that is empty in every row is left out."""
    kept = [place for place in range(len(head)) if not rows or any(row[place] for row in rows)]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line[place] for place in kept) + " |" for line in lines)


def short(value: float, digits: int = 3) -> str:
    """Write a share as README does, .805; small ones with a place more, so that .0059 is not .006."""
    if abs(value) < 0.00005:
        return ".000"
    digits += digits == 3 and abs(value) < 0.0095
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


def spanned(span: dict) -> str:
    """Write a difference with its interval."""
    return f"{short(span['auc'])} ({short(span['low'])} to {short(span['high'])})"


def _span(span: dict | None) -> str:
    return f"{short(span['low'])} to {short(span['high'])}" if span else ""


def _gap(span: list[float] | None) -> str:
    return f"{'+' * (span[0] >= 0.00005)}{short(span[0])} ({short(span[1])} to {short(span[2])})" if span else "too few"


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _whole(share: float) -> str:
    return f"{100 * share:.0f} %"


def _number(many: int, noun: str = "") -> str:
    word = NUMBERS[many] if many < len(NUMBERS) else f"{many:,}"
    return f"{word} {noun}{'s' * (many != 1)}" if noun else word
