"""A plot as SVG, small enough to be read as text: lines over sizes that are powers of ten."""

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 44, 64
COLOURS = ("#2f6fde", "#d9662b", "#2a9d62")
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #333 }
.title { font-weight: 600 }
.axis { stroke: #999; fill: none }
.grid { stroke: #ddd }
@media (prefers-color-scheme: dark) {
  text { fill: #ccc }
  .axis { stroke: #777 }
  .grid { stroke: #444 }
}
"""

Points = Sequence[tuple[float, float]]


def plot(title: str, lines: Mapping[str, Points]) -> str:
    """Lines of (factor, value): the factors evenly, as ×1, ×10 …; the values from zero up."""
    factors = sorted({x for points in lines.values() for x, _ in points})
    top = _round_up(max(y for points in lines.values() for _, y in points))
    parts = [f'<text class="title" x="{LEFT}" y="22">{escape(title)}</text>']
    for step in range(5):
        value = top * step / 4
        y = _y(value, top)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for factor in factors:
        x = _x(factor, factors)
        y = HEIGHT - BOTTOM + 20
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">×{factor:g}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [(_x(x, factors), _y(y, top)) for x, y in points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
        x, y = LEFT + number * (WIDTH - LEFT) // len(lines), HEIGHT - 16
        parts.append(f'<circle cx="{x + 5}" cy="{y - 4}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{x + 16}" y="{y}">{escape(name)}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def _x(factor: float, factors: Sequence[float]) -> float:
    share = factors.index(factor) / max(1, len(factors) - 1)
    return LEFT + 30 + share * (WIDTH - RIGHT - LEFT - 60)


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - TOP)


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(n * power for n in (1, 2, 4, 8, 10) if n * power >= value)
