"""Read-only tools for assistants: a Model Context Protocol server for one session."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from qanchor.data.export import MIN_GROUP_SIZE
from qanchor.errors import QanchorError
from qanchor.utils.text import count
from qanchor.workbench.messages import interpretation_sentence, unanswerable_note
from qanchor.workbench.session import WorkbenchSession

if TYPE_CHECKING:
    from mcp.server import MCPServer

MAX_USERS_TOLD = 100
MAX_EVENTS_TOLD = 200
MAX_GROUP_ROWS = 20
INSTRUCTIONS = (
    "Rank the users of one event log for a question in plain words, based on what each user did."
    " Call describe first. A score orders users for one question; it is not a probability. Report"
    " the backtest of the question beside a ranking. Do not act on a ranking at chance."
)


def make_mcp_server(session: WorkbenchSession) -> MCPServer:
    """Return a server whose tools read one session and never change it.

    The tools are `describe`, `ask`, `evidence`, `group` and `backtest`.

    Args:
        session: The session.

    Raises:
        ValueError: The package `mcp` is not installed.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> make_mcp_server(qa.WorkbenchSession(engine, users)).name
        'qanchor'
    """
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
        from mcp.types import ToolAnnotations
    except ImportError as error:
        raise ValueError(
            "The package mcp is not installed. Run pip install 'qanchor[mcp]'."
        ) from error
    server = MCPServer("qanchor", instructions=INSTRUCTIONS)
    tools = SessionTools(session)

    def tells_errors(tool: Callable) -> Callable:
        """Return a tool whose errors reach the assistant as messages."""

        @wraps(tool)
        def run(*args, **kwargs):
            try:
                return tool(*args, **kwargs)
            except (QanchorError, ValueError, KeyError) as error:
                raise ToolError(str(error.args[0] if error.args else error)) from error

        return run

    for tool in (tools.describe, tools.ask, tools.evidence, tools.group, tools.backtest):
        server.tool(annotations=ToolAnnotations(read_only_hint=True))(tells_errors(tool))
    return server


class SessionTools:
    """The tools of the server. Each method returns JSON serializable data.

    Args:
        session: The session.
    """

    def __init__(self, session: WorkbenchSession):
        self._session = session

    def describe(self) -> dict[str, Any]:
        """Describe the users and their data, and list questions that can be asked."""
        users = self._session.users
        history = users.history()
        return {
            "name": users.name,
            "users": len(users),
            "unit": users.unit,
            "events": len(history),
            "first_event": str(history["time"].min()),
            "cutoff": str(users.cutoff),
            "horizon_days": users.horizon_days,
            "modalities": list(users.modalities),
            "facts": list(users.tabular),
            "questions": self._session.lens.queries,
        }

    def ask(self, question: str, top: int = 10) -> dict[str, Any]:
        """Rank all users for a question in plain words and return the top ones.

        If the data has nothing about the question, `answerable` is false and `can_be_asked` names
        what can be asked instead. `top` is the number of users to return, at most 100.
        """
        if not question.strip():
            raise ValueError("The question is empty. Write one, such as those that describe lists.")
        ranking = self._session.engine.rank(self._session.cache, question)
        about = ranking.attrs
        if not about["answerable"]:
            note = unanswerable_note(question, about["nearest"])
            return {"answerable": False, "note": note, "can_be_asked": list(about["nearest"])}
        top = min(max(top, 1), MAX_USERS_TOLD)
        return {
            "answerable": True,
            "interpretation": interpretation_sentence(ranking),
            "events_that_count": about["evidence"],
            "users": ranking.head(top).to_dict("records"),
            "of": len(ranking),
        }

    def evidence(self, user: str | int, question: str = "") -> dict[str, Any]:
        """Return one user's events, newest first, and mark those that the question is about."""
        user = str(user)
        timeline = self._session.lens.timeline(user, question).iloc[::-1]
        events = timeline.head(MAX_EVENTS_TOLD).astype({"time": str, "modality": str, "text": str})
        return {
            "answer": self._session.lens.answer(user, question) if question.strip() else "",
            "events": events.to_dict("records"),
            "of": len(timeline),
            "that_count": int(timeline["evidence"].sum()),
        }

    def group(self, ids: list[str | int]) -> dict[str, Any]:
        """Compare ten or more users with all others, most significant difference first."""
        ids = list(dict.fromkeys(map(str, ids)))
        if len(ids) < MIN_GROUP_SIZE:
            raise ValueError(
                f"The group has {len(ids)} users; at least {MIN_GROUP_SIZE} are needed. Add more."
            )
        update = self._session.describe(ids)
        compared = update.data["frame"]
        rows = compared.head(MAX_GROUP_ROWS)
        rows = rows.astype(object).where(rows.notna(), None)
        differences = rows.to_dict("records")
        return {"summary": update.message, "differences": differences, "of": len(compared)}

    def backtest(self, question: str) -> dict[str, Any]:
        """Backtest the ranking for a question as of an earlier day.

        `right` is the share of pairs of users in the order that later events confirmed (0.5 is
        chance), with its 95 % interval from `low` to `high`.
        """
        *_, last = self._session.lens.backtest(question)
        result = last.data["backtest"]
        numbers = {"right": result.right, "low": result.low, "high": result.high}
        return {"summary": last.message, "users": result.n, **numbers}


def serve(session: WorkbenchSession, say: Callable[[str], object]) -> None:
    """Serve a session over standard input and output until the client leaves.

    Args:
        session: The session.
        say: Called with one line when the server is ready; it must not write to standard output.
    """
    server = make_mcp_server(session)
    users = count(len(session.users), session.users.unit)
    say(f"qanchor mcp: {users} of {session.users.name}, waiting for a client")
    server.run("stdio")
