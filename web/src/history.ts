/** A panel's columns: asked for once, then continued by the stream or by asking for what is new. */
import { useEffect, useState } from 'preact/hooks'
import * as api from './api.ts'
import { beside, EMPTY, followedBy, gridOf, onGrid, since, type Columns, type Grid } from './columns.ts'
import { inOrder, matcher, negated, windowOf, type Panel, type Range } from './panels.ts'
import { Reading } from './series.ts'
import type { Stream } from './stream.ts'
import { seconds } from './units.ts'

export interface History {
  columns: Columns
  loading: boolean
  error: string | undefined
}

const LOADING: History = { columns: EMPTY, loading: true, error: undefined }
/** Between live values, more than this and than three times their spacing is a gap, not a line. */
const LIVE_GAP_S = 30
/** Steps longer than this show nothing of single live values. */
const LIVE_STEP_S = 15
const RETRY_MS = 3_000

/** Follows the panel until the view is left. `revision` asks for all of it again when it changes. */
export function useHistory(
  panel: Panel,
  instance: string,
  interval_s: number | undefined,
  range: Range,
  stream: Stream,
  revision: number,
): History {
  const [history, setHistory] = useState(LOADING)
  useEffect(() => {
    setHistory(LOADING)
  }, [panel, instance, interval_s, range])

  useEffect(() => {
    const left = new AbortController()
    const live = panel.live !== undefined && range.step_s <= LIVE_STEP_S ? panel.live : undefined
    let timer: ReturnType<typeof setTimeout> | undefined
    let columns: Columns | undefined
    const early: Columns[] = []
    let lastRow_s: number | undefined
    let spacing_s = Infinity

    const show = (next: Columns) => {
      columns = since(next, api.now() - range.range_s)
      setHistory({ columns, loading: false, error: undefined })
    }
    const load = async () => {
      // While values come by themselves, there is nothing to ask for.
      if (columns !== undefined && live !== undefined && stream.state === 'open') {
        timer = setTimeout(() => void load(), range.step_s * 1000)
        return
      }
      const start = columns?.at.at(-1) ?? api.now() - range.range_s
      const grid = gridOf(columns === undefined ? start : start + range.step_s / 2, api.now(), range.step_s)
      let wait_ms = range.step_s * 1000
      try {
        const part =
          grid.end < grid.start ? EMPTY : await fetchColumns(panel, instance, windowOf(range, interval_s), grid, left.signal)
        const whole = columns === undefined ? part : followedBy(columns, part, Infinity)
        show(
          inOrder(
            early.splice(0).reduce((all, row) => followedBy(all, row, Infinity), whole),
            panel,
          ),
        )
      } catch (error) {
        if (left.signal.aborted) return
        const reason = error instanceof api.ApiError ? error.message : String(error)
        setHistory((shown) => ({ ...shown, loading: false, error: reason }))
        wait_ms = RETRY_MS
      }
      timer = setTimeout(() => void load(), wait_ms)
    }
    void load()

    const stop = stream.listen({
      samples({ instance: from, at, values }) {
        if (live === undefined || from !== instance || values === undefined) return
        const row = liveRow(live.lines(new Reading(seconds(at), values)), seconds(at))
        if (row === undefined) return
        const gap_s = Math.max(LIVE_GAP_S, 3 * spacing_s)
        spacing_s = Math.min(spacing_s, row.at[0]! - (lastRow_s ?? -Infinity))
        lastRow_s = row.at[0]
        if (columns === undefined) early.push(row)
        else show(inOrder(followedBy(columns, row, gap_s), panel))
      },
    })
    return () => {
      left.abort()
      clearTimeout(timer)
      stop()
    }
  }, [panel, instance, interval_s, range, stream, revision])
  return history
}

function liveRow(values: ReadonlyMap<string, number>, at: number): Columns | undefined {
  if (values.size === 0 || Number.isNaN(at)) return undefined
  return { at: [at], lines: [...values].map(([name, value]) => ({ name, values: [value] })) }
}

async function fetchColumns(
  panel: Panel,
  instance: string,
  window: string,
  grid: Grid,
  signal: AbortSignal,
): Promise<Columns> {
  const parts = panel.queries.map(async (query) => {
    const expression = query.expression(matcher(instance), window)
    const matrix = await api.queryRange(expression, grid, signal)
    const named = matrix.map(({ metric, values }) => ({ name: query.name(metric), values }))
    const columns = onGrid(merged(named), grid)
    return query.below === true ? negated(columns) : columns
  })
  return beside(await Promise.all(parts))
}

type Named = { name: string; values: [number, string][] }

/** Series that share a name (two file systems on one mount point) become one line: the last one's. */
function merged(lines: Named[]): Named[] {
  return [...new Map(lines.map((line) => [line.name, line])).values()]
}
