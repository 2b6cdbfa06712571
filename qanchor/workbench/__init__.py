"""Back ends of the widgets: callables that yield updates, and the texts of the interface."""
