"""A query of the module's, which is asked as a server where there is no /query."""

from the0 import query


@query.handler("/seen")
def seen(_):
    return "asked"


query.run()
