"""Root cause: rules over the streams say what ails a host, with the figures and the SQL that show it.

metrics   what is looked at, as SQL                series    the figures of a window and of the hour before
limits    thresholds and their units               rules     what they mean together
judge     hosts → verdicts                         command   `bpfleet diagnose`, and `--watch`
"""
