"""Back ends of the widgets: callables that yield updates, and their words."""
