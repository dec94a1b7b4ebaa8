/** Series in the text form: `node_load1` or `node_cpu_seconds_total{cpu="0",mode="idle"}`. */

export type Labels = Readonly<Record<string, string>>

export interface Series {
  readonly metric: string
  readonly labels: Labels
}

const NAME = /[a-zA-Z_:][a-zA-Z0-9_:]*/y
const LABEL = /\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(,|(?=\}))/y
const ESCAPES: Record<string, string> = { n: '\n', '\\': '\\', '"': '"' }

/** The series that the text spells, or undefined where it spells none. */
export function parseSeries(text: string): Series | undefined {
  NAME.lastIndex = 0
  const metric = NAME.exec(text)?.[0]
  if (metric === undefined) return undefined
  if (metric.length === text.length) return { metric, labels: {} }
  if (text[metric.length] !== '{') return undefined
  const labels: [string, string][] = []
  let position = metric.length + 1
  while (text[position] !== '}') {
    LABEL.lastIndex = position
    const match = LABEL.exec(text)
    if (match === null) return undefined
    labels.push([match[1]!, unescape(match[2]!)])
    position = LABEL.lastIndex
  }
  // fromEntries defines own properties, so that a label named __proto__ stays a label
  return position === text.length - 1 ? { metric, labels: Object.fromEntries(labels) } : undefined
}

function unescape(text: string): string {
  return text.replace(/\\(.)/g, (whole, letter: string) => ESCAPES[letter] ?? whole)
}

/** A string literal of PromQL. */
export function quote(text: string): string {
  return `"${text.replace(/\\/g, '\\\\').replace(/"/g, '\\"').replace(/\n/g, '\\n')}"`
}

/** What one agent read at one instant, by metric. */
export class Reading {
  private readonly byMetric = new Map<string, { labels: Labels; value: number }[]>()

  constructor(
    readonly at: number,
    /** Null stands for NaN and the infinities, which JSON can't say. */
    values: Readonly<Record<string, number | null>>,
  ) {
    for (const [text, value] of Object.entries(values)) {
      const series = parseSeries(text)
      if (series === undefined || value === null) continue
      const same = this.byMetric.get(series.metric)
      const one = { labels: series.labels, value }
      if (same === undefined) this.byMetric.set(series.metric, [one])
      else same.push(one)
    }
  }

  of(metric: string): readonly { labels: Labels; value: number }[] {
    return this.byMetric.get(metric) ?? []
  }
}
