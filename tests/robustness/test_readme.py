"""What README shows runs as it stands there: its Python blocks and the commands for own data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qanchor as qa

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICK_START, WORKBENCH, OWN_DATA = re.findall(r"```python\n(.*?)```", README, re.S)


def run(command: list[str], folder: Path) -> str:
    """Run a command in a folder as a user would, and return what it prints."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_quick_start_and_workbench():
    printed = run([sys.executable, "-c", QUICK_START + WORKBENCH], ROOT / "notebooks")
    assert "score" in printed and "auc" in printed


@pytest.mark.slow
def test_own_data(tmp_path):
    """A gym's export, with the gym's own names of columns."""
    users = qa.make_sample_users(200)
    gym = tmp_path / "gym"
    gym.mkdir()
    columns = {"user": "member_id", "time": "when", "text": "activity"}
    events = users.events[["user", "time", "text", "amount"]].rename(columns=columns)
    events.to_csv(gym / "events.csv", index=False)
    labels = users.labels[["Fraud"]].rename(columns={"Fraud": "Cancelled"})
    labels.rename_axis("member_id").reset_index().to_csv(gym / "labels.csv", index=False)
    about = '{"columns": {"user": "member_id"}, "unit": "member", "horizon_days": 30}'
    (gym / "about.json").write_text(about)
    commands = re.findall(r"^qanchor (.*gym-clean.*)$", README, re.M)
    assert len(commands) == 4
    question = "Will this member travel soon?"
    for command in commands:
        words = re.findall(r'"[^"]*"|[^\s"]+', command.partition("#")[0])
        words = [question if word.startswith('"') else word for word in words]
        run([sys.executable, "-m", "qanchor", *words], tmp_path)
    run(
        [sys.executable, "-c", OWN_DATA.replace("Will this member stop coming?", question)],
        tmp_path,
    )
    assert len((tmp_path / "group.csv").read_text().splitlines()) > 50
