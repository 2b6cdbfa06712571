"""Retention and funnels of a selection, in a real JupyterLab."""

import pytest

SHOW = """import qanchor as qa
from tests.fitted import fitted_engine, sample_users
from qanchor.widgets import RetentionView
from qanchor.widgets.base import Selection
session = qa.WorkbenchSession(fitted_engine(), sample_users(), method="pca")
selection = Selection(session.users.ids, lambda rows: None)
view = RetentionView(selection, session.retention, session.funnel, session.users.modalities)
view"""
SELECT = "selection.ids = session.users.ids[:25]"


@pytest.mark.journey
def test_the_selected_stand_beside_the_rest(open_notebook, server):
    book = open_notebook(server.write("retention.ipynb", [SHOW, SELECT]))
    page = book.page
    book.run(0)
    book.wait("document.querySelector('.ret')?.dataset.periods > 0")
    assert "were active" in page.locator(".ret-said").first.inner_text()
    assert page.locator(".ret-line").count() == 1
    book.run(1)
    book.wait("document.querySelectorAll('.ret-line').length === 2")
    page.get_by_label("Steps of a funnel").fill("search, bill")
    page.get_by_role("button", name="Show funnel").click()
    book.wait("document.querySelector('.ret').dataset.steps > 0")
    assert page.locator(".ret-steps li").count() == 2
    assert "of the selected come to “bill”" in page.locator(".ret-said").last.inner_text()
    book.shot("retention")
    page.get_by_label("Steps of a funnel").fill("search, zebra")
    page.get_by_role("button", name="Show funnel").click()
    book.wait("document.querySelector('.ret').innerText.includes('Nobody did')")
    book.check()
    page.close()
