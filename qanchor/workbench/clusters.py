"""Back end of the cluster view: a cluster comparison with its texts."""

from __future__ import annotations

from qanchor.analysis.clusters import SIDES, ClusterComparison
from qanchor.utils.text import plural
from qanchor.workbench.messages import clusters_summary, comparison_caption, transitions_summary
from qanchor.workbench.updates import Update


def comparison_update(comparison: ClusterComparison, unit: str = "user") -> Update:
    """Return a comparison of clusters as an update for the view.

    Args:
        comparison: The comparison, from `compare_clusters`.
        unit: Word for one user (default "user").

    Returns:
        An update whose message says what became of the clusters. Its data: the fields of
        `ClusterComparison`, `summaries` (a text for each side), `unit` and `units`.

    Example:
        >>> from qanchor.analysis.clusters import compare_clusters
        >>> users, random = qa.make_sample_users(60), np.random.default_rng(0)
        >>> rows = np.repeat(np.eye(2, 8), 30, axis=0) + random.normal(scale=0.05, size=(60, 8))
        >>> comparison_update(compare_clusters(rows, rows, users, method="pca")).message
        '2 clusters became 2: 2 stayed.'
    """
    data = {
        **vars(comparison),
        "summaries": {side: clusters_summary(getattr(comparison, side), unit) for side in SIDES},
        "unit": unit,
        "units": plural(unit),
    }
    message = transitions_summary(comparison.transitions, unit)
    return Update(1, 1, message, comparison_caption(comparison, unit), data=data)
