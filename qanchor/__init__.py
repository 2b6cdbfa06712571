"""Ask questions of user behaviour: query-conditioned user embeddings (Query as Anchor, arXiv
2602.14492).

The public names are listed in `__init__.pyi`. Each one is imported when it is first used, so that
`import qanchor` is fast and `qanchor.widgets` works without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
