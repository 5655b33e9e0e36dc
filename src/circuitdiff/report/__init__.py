"""The report on a run: figures and one self-contained page, made without the model."""

from circuitdiff.report.figures import figures
from circuitdiff.report.page import report_page, write_report

__all__ = ["figures", "report_page", "write_report"]
