"""The report on a run: figures and one self-contained page, made from its results without the model."""

from circuitdiff.report.page import figures, report_page, write_report

__all__ = ["figures", "report_page", "write_report"]
