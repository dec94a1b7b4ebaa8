/**
 * What a chart draws: instants in rising order and, per line, one value or null (no sample) for each.
 * Nothing here changes what it was given.
 */

export interface Line {
  readonly name: string
  readonly values: readonly (number | null)[]
}

export interface Columns {
  readonly at: readonly number[]
  readonly lines: readonly Line[]
}

export interface Grid {
  /** Unix seconds, multiples of the step; the end is part of it. */
  readonly start: number
  readonly end: number
  readonly step: number
}

export const EMPTY: Columns = { at: [], lines: [] }

/** The grid's points are multiples of the step, so that a later request continues the earlier one. */
export function gridOf(start: number, end: number, step: number): Grid {
  return { start: Math.ceil(start / step) * step, end: Math.floor(end / step) * step, step }
}

/** One range query's result on its grid; a point without a sample becomes null. */
export function onGrid(
  matrix: readonly { name: string; values: readonly (readonly [number, string])[] }[],
  grid: Grid,
): Columns {
  const length = Math.max(0, Math.round((grid.end - grid.start) / grid.step) + 1)
  const at = Array.from({ length }, (_, index) => grid.start + index * grid.step)
  const lines = matrix.map(({ name, values }) => {
    const line: (number | null)[] = new Array<number | null>(length).fill(null)
    for (const [instant, text] of values) {
      const index = Math.round((instant - grid.start) / grid.step)
      if (index >= 0 && index < length) line[index] = finite(text)
    }
    return { name, values: line }
  })
  return { at, lines }
}

/** NaN and the infinities can't be drawn: they are gaps. */
function finite(text: string): number | null {
  const value = Number(text)
  return Number.isFinite(value) ? value : null
}

/** Columns of different queries on the same instants, side by side. */
export function beside(parts: readonly Columns[]): Columns {
  return { at: parts[0]?.at ?? [], lines: parts.flatMap((part) => part.lines) }
}

/**
 * The later columns after the earlier ones. Rows that are not later are dropped; where more than `gap_s` lies
 * between the two, a row of nulls keeps the line from being drawn across. A line that only one side knows is
 * null on the other.
 */
export function followedBy(earlier: Columns, later: Columns, gap_s: number): Columns {
  const last = earlier.at.at(-1)
  if (last === undefined) return later
  const from = later.at.findIndex((at) => at > last)
  if (from < 0) return earlier
  const hole = later.at[from]! - last > gap_s ? [(last + later.at[from]!) / 2] : []
  const at = [...earlier.at, ...hole, ...later.at.slice(from)]
  const laterLines = new Map(later.lines.map((line) => [line.name, line.values]))
  const names = new Set([...earlier.lines.map((line) => line.name), ...laterLines.keys()])
  const earlierLines = new Map(earlier.lines.map((line) => [line.name, line.values]))
  const lines = [...names].map((name) => {
    const before = earlierLines.get(name) ?? nulls(earlier.at.length)
    const after = laterLines.get(name)?.slice(from) ?? nulls(later.at.length - from)
    return { name, values: [...before, ...nulls(hole.length), ...after] }
  })
  return { at, lines }
}

function nulls(length: number): null[] {
  return new Array<null>(length).fill(null)
}

/** The columns from an instant on, and the one row before it, so that a line reaches the chart's edge. */
export function since(columns: Columns, start: number): Columns {
  const first = columns.at.findIndex((at) => at >= start)
  if (first <= 1) return columns
  const from = first - 1
  return {
    at: columns.at.slice(from),
    lines: columns.lines.map(({ name, values }) => ({ name, values: values.slice(from) })),
  }
}

/** Each line on top of those before it; the last is the sum. A row that lacks any value is null in all. */
export function stacked(columns: Columns): Columns {
  const sums = columns.at.map(() => 0)
  const whole = columns.at.map((_, row) => columns.lines.every((line) => line.values[row] != null))
  const lines = columns.lines.map(({ name, values }) => ({
    name,
    values: values.map((value, row) => (whole[row] ? (sums[row]! += value!) : null)),
  }))
  return { at: columns.at, lines }
}

/** Where a value stands alone between gaps: no line leads to it, so it must be drawn as a point. */
export function alone(values: ArrayLike<number | null | undefined>): number[] {
  const found: number[] = []
  for (let row = 0; row < values.length; row += 1) {
    if (values[row] != null && values[row - 1] == null && values[row + 1] == null) found.push(row)
  }
  return found
}

/** The newest value of each line that has one after an instant. */
export function latest(columns: Columns, after: number): Map<string, number> {
  const first = columns.at.findIndex((at) => at > after)
  const found = new Map<string, number>()
  if (first < 0) return found
  for (const { name, values } of columns.lines) {
    const value = values.slice(first).findLast((one) => one !== null)
    if (value != null) found.set(name, value)
  }
  return found
}

/** Whether any line has any value. */
export function hasValues(columns: Columns): boolean {
  return columns.lines.some((line) => line.values.some((value) => value !== null))
}
