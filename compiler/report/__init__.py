"""The report of a build and its runs: plain data in, one self-contained HTML page out."""

from specc.compiler.report.data import Report
from specc.compiler.report.page import render

__all__ = ["Report", "render"]
