"""A qualification as JUnit XML: one case for parity and one for each difference, for any CI that counts cases.

In: a `Qualification`. Out: bytes of an XML document.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from lockstep.parity.qualify.difference import Difference, Setting, shown
from lockstep.parity.qualify.qualification import Qualification, claims, label, nats
from lockstep.parity.qualify.tables import figure

SUITE = "lockstep.qualify"


def junit(qualification: Qualification) -> bytes:
    """The document, UTF-8.

    The case ``parity`` passes if NEW agrees as it is, fails if it differs, and is an error if nobody knows. A
    difference fails if it is to be put back, passes if parity holds with it, and is skipped where there is no answer.
    """
    cases = [_parity(qualification), *(_case(qualification, d) for d in qualification.restoration.differences)]
    kinds = [child.tag for case in cases for child in case if child.tag != "system-out"]
    counts = {
        "tests": str(len(cases)),
        "failures": str(kinds.count("failure")),
        "errors": str(kinds.count("error")),
        "skipped": str(kinds.count("skipped")),
    }
    suites = ET.Element("testsuites", counts)
    suite = ET.SubElement(suites, "testsuite", {"name": SUITE, **counts})
    properties = ET.SubElement(suite, "properties")
    sides = {"old": qualification.old, "new": qualification.new}
    for name, value in {**sides, **qualification.facts, **qualification.figures}.items():
        ET.SubElement(properties, "property", {"name": label(name), "value": figure(value)})
    suite.extend(cases)
    ET.indent(suites)
    return ET.tostring(suites, encoding="utf-8", xml_declaration=True) + b"\n"


def _parity(qualification: Qualification) -> ET.Element:
    case = ET.Element("testcase", {"classname": SUITE, "name": "parity"})
    status = qualification.restoration.status
    if status != "parity":
        kind = "failure" if status in {"restored", "outside"} else "error"
        child = ET.SubElement(case, kind, {"type": status, "message": qualification.verdict})
        child.text = "\n".join(claims(qualification))
    return case


def _case(qualification: Qualification, difference: Difference) -> ET.Element:
    found = qualification.restoration
    new = Setting(difference.name, difference.new)
    case = ET.Element("testcase", {"classname": f"{SUITE}.settings", "name": shown(difference.name, 200)})
    member = next((member for member in found.members if member.difference.name == difference.name), None)
    if member is not None:
        does = f"{nats(member.alone.mean)} nats of mean |log ratio| by itself ({member.alone.outcome})"
        breaks = f"; {new} breaks parity" if member.needed else ""
        what = f"put back {difference.restored}{breaks}"
        ET.SubElement(case, "failure", {"type": "restoring", "message": what}).text = f"{new}: {does}"
    elif found.status not in {"parity", "restored"}:
        ET.SubElement(case, "skipped", {"message": f"no answer: {qualification.verdict}"})
    else:
        ET.SubElement(case, "system-out").text = f"parity holds with {new} (old value {shown(difference.old)})"
    return case
