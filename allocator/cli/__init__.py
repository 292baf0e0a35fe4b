"""The command line: a module per command group; the only place that prints.

Standard output is data, standard error is talk. A command imports what it needs when it runs, so that `claim` stays
light. May not live here: how anything works.
"""
