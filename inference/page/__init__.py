"""The mode page."""


def page(options, config):
    """Serves the page until a signal comes. Raises UserError where that cannot begin."""
    from inference.page.server import serve  # here, as no other mode needs a server
    serve(options, config)
