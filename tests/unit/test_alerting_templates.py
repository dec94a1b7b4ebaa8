"""Templates of labels and annotations: Prometheus' results, and refusals with their place."""

import pytest

from engine.templates import TemplateError, parse_template

LABELS = {"instance": "web1:9100", "device": "sda"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("{{ $labels.instance }} is {{ $value }}", "web1:9100 is 1234567"),
        ("{{ .Labels.device }}:{{.Value}}", "sda:1234567"),
        ("[{{ $labels.nothing }}]", "[]"),
        ("{{ $labels }}", "map[device:sda instance:web1:9100]"),
        ("{{ $value | humanize }}", "1.235M"),
        ("{{ humanize1024 $value }}", "1.177Mi"),
        ("{{ $value | humanizePercentage }}", "1.235e+08%"),
        ("{{ $value | humanizeDuration }}", "14d 6h 56m 7s"),
        ('{{ printf "%.2f" $value }}', "1234567.00"),
        ('{{ $value | printf "%.3g" }}', "1.23e+06"),
        ('{{ printf "%s: %g of %v%%" $labels.device $value $value }}', None),
        ("{{ $labels.device | toUpper }}", "SDA"),
        ("a  {{- $labels.device -}}  b", "asdab"),
        ('{{ "quoted \\"text\\"" }}', 'quoted "text"'),
    ],
)
def test_a_template_renders_as_in_prometheus(text: str, expected: str | None) -> None:
    found = parse_template(text).render(LABELS, 1234567.0)
    found = found.replace("1.234567e+06", "1234567")
    assert found == (expected or "sda: 1234567 of 1234567%")


@pytest.mark.parametrize(
    ("value", "humanized", "binary", "percentage", "duration"),
    [
        (123456789.0, "123.5M", "117.7Mi", "1.235e+10%", "1428d 21h 33m 9s"),
        (100000.0, "100k", "97.66ki", "1e+07%", "1d 3h 46m 40s"),
        (999999.0, "1000k", "976.6ki", "1e+08%", "11d 13h 46m 39s"),
        (0.00001, "10u", "1e-05", "0.001%", "10us"),
        (0.0001234, "123.4u", "0.0001234", "0.01234%", "123.4us"),
        (1.5, "1.5", "1.5", "150%", "1.5s"),
        (-3.25, "-3.25", "-3.25", "-325%", "-3.25s"),
        (0.0, "0", "0", "0%", "0s"),
        (float("nan"), "NaN", "NaN", "NaN%", "NaN"),
        (float("-inf"), "-Inf", "-Inf", "-Inf%", "-Inf"),
    ],
)
def test_numbers_are_humanized_as_promtool_does(
    value: float, humanized: str, binary: str, percentage: str, duration: str
) -> None:
    names = ("humanize", "humanize1024", "humanizePercentage", "humanizeDuration")
    found = [parse_template(f"{{{{ {name} $value }}}}").render({}, value) for name in names]
    assert found == [humanized, binary, percentage, duration]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ $labels[0] }}", "line 1, column 4: '$labels[0]' is not supported"),
        ("a\nb {{ query `up` }}", "line 2, column 6: 'query' is not supported"),
        ("{{ if $value }}x{{ end }}", "line 1, column 4: 'if' is not supported"),
        ("{{ $value", "line 1, column 1: `{{` without `}}`"),
        ("a }} {{ $value }}", "line 1, column 3: stray braces"),
        ("{{ }}", "an empty expression"),
        ("{{ $value | }}", "an empty expression"),
        ("{{ humanize }}", "humanize takes one number"),
        ("{{ $labels.a | humanize }}", "humanize takes one number"),
        ("{{ $value $value }}", "expected a function before its arguments"),
        ('{{ printf "%d" $value }}', "'%d' for a number is not supported"),
        ('{{ printf "%.1f" }}', "1 verbs for 0 arguments"),
        ('{{ printf "%s" (humanize $value) }}', "'(humanize' is not supported"),
        ("{{ humanize toUpper }}", "a function stands where an argument is expected"),
        ("{{ $externalLabels.x }}", "is not supported"),
    ],
)
def test_what_a_template_cannot_do_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(TemplateError) as error:
        parse_template(text)
    assert message in str(error.value)
