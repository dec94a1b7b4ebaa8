/** One panel as a uPlot chart with its legend. Names of lines are only ever text nodes. */
import { useEffect, useMemo, useRef, useState } from 'preact/hooks'
import uPlot from 'uplot'
import { alone, latest, stacked, type Columns } from './columns.ts'
import type { Panel } from './panels.ts'
import { useTheme, type Theme } from './theme.ts'
import { formatClock, formatTick, formatTicks, formatValue } from './units.ts'

/** Colours that differ in hue and lightness, on each background at a contrast of 3:1 or more. */
const COLOURS: Record<
  Theme,
  { lines: string[]; quiet: string; grid: string; text: string; surface: string }
> = {
  light: {
    lines: ['#0f7c83', '#c25e0c', '#4a67c7', '#a8487f', '#5b8a1e', '#8a6d1b', '#7a55b8', '#64727f'],
    quiet: '#8b98a5',
    grid: '#e8ebee',
    text: '#566270',
    surface: '#ffffff',
  },
  dark: {
    lines: ['#3fb9bf', '#e8934a', '#8ba3f5', '#de83b6', '#9cc95a', '#d2b35a', '#b497ec', '#9aa8b5'],
    quiet: '#63717e',
    grid: '#252d35',
    text: '#9aa6b2',
    surface: '#171d23',
  },
}

const HEIGHT_PX = 190
const FONT = '11px system-ui, sans-serif'
/** Tick distances of bytes, so that axes say 512 MiB and not 488.3 MiB. */
const BINARY_STEPS = Array.from({ length: 50 }, (_, power) => 2 ** power)

export interface Window {
  start: number
  end: number
  /** Values after this instant count as those of now. */
  fresh: number
}

interface Props {
  panel: Panel
  columns: Columns
  window: Window
}

/** Opposite lines of one subject (`sda read`, `sda written`) share their colour. */
function colourOf(panel: Panel, names: readonly string[], index: number, theme: Theme): string {
  const { lines, quiet } = COLOURS[theme]
  if (panel.quiet === names[index]) return quiet
  const subjects = panel.queries.some((query) => query.below) ? [...new Set(names.map(subject))] : names
  const place = subjects.indexOf(subjects === names ? names[index]! : subject(names[index]!))
  return lines[place % lines.length]!
}

function subject(name: string): string {
  return name.slice(0, Math.max(0, name.lastIndexOf(' ')))
}

export function Chart({ panel, columns, window }: Props) {
  const theme = useTheme()
  const box = useRef<HTMLDivElement>(null)
  const plot = useRef<uPlot>(undefined)
  const view = useRef(window)
  const [row, setRow] = useState<number | null>(null)
  const [hidden, setHidden] = useState<ReadonlySet<string>>(new Set())

  const shown = useMemo(
    () => ({ at: columns.at, lines: columns.lines.filter((line) => !hidden.has(line.name)) }),
    [columns, hidden],
  )
  const names = columns.lines.map((line) => line.name)
  const key = JSON.stringify([names, [...hidden]])
  view.current = window

  useEffect(() => {
    const element = box.current!
    const colours = shown.lines.map((line) => colourOf(panel, names, names.indexOf(line.name), theme))
    const chart = new uPlot(options(panel, colours, theme, element.clientWidth, view, setRow), [[]], element)
    plot.current = chart
    const watch = new ResizeObserver(() => chart.setSize({ width: element.clientWidth, height: HEIGHT_PX }))
    watch.observe(element)
    return () => {
      watch.disconnect()
      chart.destroy()
    }
    // `key` stands for the lines: a chart is made anew when its lines change, not when their values do
  }, [panel, theme, key])

  useEffect(() => {
    const { at, lines } = panel.stacked === true ? stacked(shown) : shown
    plot.current?.setData([[...at], ...lines.map((line) => [...line.values])])
  }, [panel, theme, key, shown, window.start, window.end])

  const newest = latest(columns, window.fresh)
  return (
    <>
      <div class="chart" ref={box} role="img" aria-label={`${panel.title}, ${panel.headline(newest)}`} />
      <div class="legend">
        <span class="legend-time">
          {row === null || columns.at[row] === undefined ? 'now' : formatClock(columns.at[row])}
        </span>
        <ul>
          {columns.lines.map((line, index) => {
            const value = row === null ? newest.get(line.name) : line.values[row]
            const size = value === null || value === undefined ? value : Math.abs(value)
            return (
              <li key={line.name}>
                <button
                  type="button"
                  aria-pressed={!hidden.has(line.name)}
                  title={hidden.has(line.name) ? 'Show this line' : 'Hide this line'}
                  onClick={() => setHidden(toggled(hidden, line.name))}
                >
                  <span class="swatch" style={{ background: colourOf(panel, names, index, theme) }} />
                  <span class="legend-name">{line.name}</span>
                  <span class="legend-value">{formatValue(size, panel.unit)}</span>
                </button>
              </li>
            )
          })}
        </ul>
      </div>
    </>
  )
}

function toggled(names: ReadonlySet<string>, name: string): ReadonlySet<string> {
  const next = new Set(names)
  if (!next.delete(name)) next.add(name)
  return next
}

function options(
  panel: Panel,
  colours: readonly string[],
  theme: Theme,
  width: number,
  view: { readonly current: Window },
  setRow: (row: number | null) => void,
): uPlot.Options {
  const { grid, text, surface } = COLOURS[theme]
  const axis = {
    stroke: text,
    font: FONT,
    grid: { stroke: grid, width: 1 },
    ticks: { show: false },
    border: { show: false },
  }
  return {
    width,
    height: HEIGHT_PX,
    padding: [10, 20, 0, 0],
    legend: { show: false },
    cursor: {
      sync: { key: 'instance' },
      drag: { x: false, y: false },
      y: false,
      points: { size: 9, width: 1.5, stroke: surface, fill: (_, index) => colours[index - 1] ?? text },
    },
    scales: {
      x: { time: true, range: () => [view.current.start, view.current.end] },
      y: { range: (_, low, high) => reach(panel, low, high) },
    },
    axes: [
      { ...axis, space: 70, size: 28, gap: 6, values: (_, ticks) => formatTicks(ticks) },
      {
        ...axis,
        size: 68,
        gap: 6,
        space: 36,
        ...(panel.unit.startsWith('bytes') ? { incrs: BINARY_STEPS } : {}),
        values: (_, ticks) => ticks.map((tick) => formatTick(Math.abs(tick), panel.unit)),
      },
    ],
    series: [
      {},
      ...colours.map((colour) => ({
        stroke: colour,
        width: panel.stacked === true ? 1 : 1.5,
        fill: colour + alpha(panel, colour, theme),
        points: {
          show: false,
          size: 4,
          fill: colour,
          filter: (chart: uPlot, line: number) => alone(chart.data[line]!),
        },
        spanGaps: false,
      })),
    ],
    ...(panel.stacked === true
      ? {
          bands: colours.slice(1).map((colour, index) => ({
            series: [index + 2, index + 1] as [number, number],
            fill: colour + alpha(panel, colour, theme),
          })),
        }
      : {}),
    hooks: { setCursor: [(chart: uPlot) => setRow(chart.cursor.idx ?? null)] },
  }
}

/** How dense the ground below a line is, as the last two digits of its colour; crossing lines have none. */
function alpha(panel: Panel, colour: string, theme: Theme): string {
  if (panel.stacked !== true) return panel.queries.some((query) => query.below) ? '14' : '00'
  return colour === COLOURS[theme].quiet ? '30' : '70'
}

/** The axis' ends: from zero (or as far below as above), with a little air, within the panel's reach and limit. */
function reach(panel: Panel, low: number | null, high: number | null): [number, number] {
  const top = Math.max((high ?? 0) * 1.08, panel.reach ?? 0)
  const bottom = Math.min((low ?? 0) * 1.08, 0)
  const end = Math.min(top === 0 && bottom === 0 ? 1 : top, panel.limit ?? Infinity)
  return [bottom, end]
}
