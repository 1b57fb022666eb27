"""Write docs/images/coverage.svg, the badge with the coverage that `make coverage` has measured."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "build" / "coverage" / "coverage.json"
BADGE = ROOT / "docs" / "images" / "coverage.svg"
COLORS = {90: "#2f7d32", 80: "#6a7d12", 60: "#a86400", 0: "#b3261e"}
"""Color of the number by the percentage from which it applies; each has enough contrast with white."""
LABEL_WIDTH = 62
VALUE_WIDTH = 42


def render_badge(percent: int) -> str:
    """Return the badge as SVG."""
    color = next(color for minimum, color in COLORS.items() if percent >= minimum)
    width = LABEL_WIDTH + VALUE_WIDTH
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="coverage: {percent}%">
  <title>coverage: {percent}%</title>
  <clipPath id="corners"><rect width="{width}" height="20" rx="3"/></clipPath>
  <g clip-path="url(#corners)">
    <rect width="{LABEL_WIDTH}" height="20" fill="#555"/>
    <rect x="{LABEL_WIDTH}" width="{VALUE_WIDTH}" height="20" fill="{color}"/>
  </g>
  <g fill="#fff" text-anchor="middle" font-family="Verdana,Geneva,DejaVu Sans,sans-serif" font-size="11">
    <text x="{LABEL_WIDTH / 2:g}" y="14">coverage</text>
    <text x="{LABEL_WIDTH + VALUE_WIDTH / 2:g}" y="14">{percent}%</text>
  </g>
</svg>
"""


def main() -> None:
    """Round the measured percentage down, and write the badge."""
    percent = int(json.loads(REPORT.read_text())["totals"]["percent_covered"])
    BADGE.write_text(render_badge(percent))
    print(f"{BADGE.relative_to(ROOT)}: {percent}%")


if __name__ == "__main__":
    main()
