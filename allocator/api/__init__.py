"""The HTTP API, the status page and the metrics: leases for programs that are not Python, and a view for people.

Lives here: routes, their models, who may call them, what is counted. May not live here: how a lease works, printing,
settings. No route, log line, metric or page shows a token.
"""
