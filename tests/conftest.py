"""Where fixtures that many tests share come from."""

pytest_plugins = ["databases", "sites", "lenders"]
