"""What an audit of two sides came to, as plain values and as one HTML file with figures.

In: findings, statements, differences, a breakdown. Out: `AuditReport`, `page`.
"""

from lockstep.parity.report.audit_report import AuditReport
from lockstep.parity.report.page import page

__all__ = ["AuditReport", "page"]
