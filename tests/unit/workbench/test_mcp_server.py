"""The tools of the Model Context Protocol, through a real client."""

import asyncio
import sys

import pytest

import qanchor as qa
from qanchor.workbench.mcp_server import make_mcp_server
from tests.fitted import fitted_engine, sample_users

pytest.importorskip("mcp")
QUESTION = "Will this user come back?"


@pytest.fixture(scope="module")
def session() -> qa.WorkbenchSession:
    return qa.WorkbenchSession(fitted_engine(), sample_users(), method="pca")


def call(server, name: str, **arguments):
    """Call a tool as a client does, and return what it returns."""
    from mcp import Client

    async def run():
        async with Client(server) as client:
            return await client.call_tool(name, arguments)

    return asyncio.run(run())


def told(session, name: str, **arguments) -> dict:
    result = call(make_mcp_server(session), name, **arguments)
    assert not result.is_error, result.content
    return result.structured_content


def test_all_tools_are_described_and_read_only(session):
    from mcp import Client

    async def tools():
        async with Client(make_mcp_server(session)) as client:
            return (await client.list_tools()).tools

    listed = asyncio.run(tools())
    assert [tool.name for tool in listed] == ["describe", "ask", "evidence", "group", "backtest"]
    assert all(tool.description and tool.annotations.read_only_hint for tool in listed)


def test_a_client_asks_as_python_does(session):
    about = told(session, "describe")
    assert about["users"] == 60 and about["modalities"] == list(session.users.modalities)
    answer = told(session, "ask", question=QUESTION, top=3)
    ranking = session.engine.rank(session.cache, QUESTION)
    assert [row["user"] for row in answer["users"]] == ranking["user"].head(3).tolist()
    user = answer["users"][0]["user"]
    evidence = told(session, "evidence", user=user, question=QUESTION)
    timeline = session.lens.timeline(user, QUESTION)
    assert evidence["of"] == len(timeline) and evidence["that_count"] == timeline["evidence"].sum()
    assert evidence["answer"] == session.lens.answer(user, QUESTION)
    group = told(session, "group", ids=list(session.users.ids[:12]) * 2)
    assert group["summary"] == session.describe(session.users.ids[:12]).message
    past = told(session, "backtest", question=QUESTION)
    assert past["right"] == qa.backtest(session.engine, session.users, QUESTION).right


def test_what_nothing_speaks_of_is_not_answered(session):
    answer = told(session, "ask", question="Will this user survive a zombie apocalypse?")
    assert answer["answerable"] is False and answer["can_be_asked"]
    assert "users" not in answer


def test_few_users_and_no_question_are_refused(session):
    result = call(make_mcp_server(session), "group", ids=[session.users.ids[0]] * 12)
    assert result.is_error and "at least 10 are needed" in result.content[0].text
    assert call(make_mcp_server(session), "ask", question=" ").is_error


def test_an_unknown_user_is_an_error_that_says_who(session):
    result = call(make_mcp_server(session), "evidence", user="nobody")
    assert result.is_error and "nobody" in result.content[0].text


def test_without_the_package_the_way_to_it_is_told(session, monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    with pytest.raises(ValueError, match=r"pip install 'qanchor\[mcp\]'"):
        make_mcp_server(session)
