"""Optuna: which point comes next, and when a trial is stopped."""

from __future__ import annotations

from saebench.study.outcomes import Decision
from saebench.study.pareto import ParetoPruner, report_pair
from saebench.study.search import Search

__all__ = ["Decision", "ParetoPruner", "Search", "report_pair"]
