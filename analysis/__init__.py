"""What the journal says: tables and the report."""

from analysis.report import write_report
from analysis.tables import failures_table, finals_table, history_table, leaderboard, search_totals, trials_table

__all__ = [
    "failures_table",
    "finals_table",
    "history_table",
    "leaderboard",
    "search_totals",
    "trials_table",
    "write_report",
]
