"""The messages of the page whose remedy no test takes."""

RECOMMENDS_NOTHING: tuple[str, ...] = ()
"""They state a fact, and leave it at that."""

UNFOLLOWED: dict[str, str] = {}
"""They recommend what no test can take, for the reason given."""
